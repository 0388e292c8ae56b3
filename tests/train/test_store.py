"""A run on an object store is the run that a folder would hold, whatever is killed and wherever it goes on."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from showo2.model import Showo2
from showo2.store import Place, StoreError, Upload, local_folder, scratch
from showo2.train import mirror
from showo2.train.checkpoint import MARKER, Checkpoints, committed
from showo2.train.guard import rewind
from showo2.train.meters import METRICS, last
from showo2.train.parallel import Workers
from showo2.train.start import export_checkpoint
from showo2.train.trainer import Trainer
from tests.s3 import store
from tests.train.small import ranks, small_recipe, story
from tests.train.test_checkpoint import saved, state
from tests.train.test_tracking import database, mlflow_lines
from tests.train.test_trainer import killed_in_step


@pytest.fixture(scope="module")
def bucket():
    with store("runs") as client:
        yield client


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of its own for each test."""
    monkeypatch.setenv("SHOWO2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def url(bucket, request) -> str:
    return f"s3://runs/{request.node.name}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, parts):
    """An uninterrupted run in a folder."""
    out = tmp_path_factory.mktemp("whole")
    Trainer(small_recipe(parts), data, out).run()
    return out


def brought_down(url: str, folder: Path) -> Path:
    """The run's metrics and export in a folder, as a user would copy them."""
    folder.mkdir()
    for name in (METRICS, "export/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((Place(url) / name).read())
    return folder


def assert_same(url: str, whole: Path, folder: Path) -> None:
    run = brought_down(url, folder)
    assert story(run) == story(whole) and len(story(run)) == 6
    assert (run / "export/model.safetensors").read_bytes() == (whole / "export/model.safetensors").read_bytes()


def another_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOWO2_CACHE", str(tmp_path / "another" / "cache"))


def steps(url: str) -> list[str]:
    return [folder.name for folder in committed(f"{url}/checkpoints")]


def test_a_run_at_a_url_is_that_in_a_folder(url, whole, tmp_path, data, parts):
    assert Trainer(small_recipe(parts, keep=2), data, url).run() == "finished"
    assert_same(url, whole, tmp_path / "down")
    assert steps(url) == ["step_00000006", "step_00000004"], "the last two stay"
    assert Place(f"{url}/checkpoints").names() == ["step_00000004", "step_00000006"]
    assert {"config.json", "goodput.json", METRICS, "export", "model", "tensorboard"} <= {*Place(url).names()}
    assert last(f"{url}/{METRICS}")["step"] == 6
    assert json.loads(Place(f"{url}/config.json").read())["recipe"]["name"] == "small"
    left = [path for path in scratch(Place(url)).parent.iterdir() if path != scratch(Place(url))]
    assert not left, "the export's copy is gone"


def killed_in_upload(workers, recipe, data, out, step):
    """kill -9 as the second half of the checkpoint of `step` goes up."""
    real = Upload.write
    sent = 0

    def write(self, block):
        nonlocal sent
        sent += len(block)
        if f"step_{step:08d}" in self._file.path and sent > 100_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, block)

    Upload.write = write
    Trainer(recipe, data, out, workers=workers).run()


def killed_before_the_marker(workers, recipe, data, out, step):
    """kill -9 with all files of a checkpoint there."""
    real = Place.write

    def write(self, content):
        if self.name == MARKER and f"step_{step:08d}" in self.where:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, content)

    Place.write = write
    Trainer(recipe, data, out, workers=workers).run()


@pytest.mark.parametrize(("run", "at", "left"), [(killed_in_step, 5, (2, 4)), (killed_in_upload, 4, (2,)),
                                                 (killed_before_the_marker, 4, (2,))])
def test_killed_and_run_again_on_another_machine_is_bit_equal(run, at, left, url, whole, tmp_path, data, parts,
                                                              monkeypatch):
    recipe = small_recipe(parts)
    assert ranks(1, run, recipe, data, url, at) == [-signal.SIGKILL]
    assert steps(url)[0] in [f"step_{step:08d}" for step in left]
    another_machine(monkeypatch, tmp_path)
    again = Trainer(recipe, data, url)
    assert again.done in left
    again.run()
    assert_same(url, whole, tmp_path / "down")


def test_two_ranks_write_and_one_goes_on(url, tmp_path, data, parts, monkeypatch):
    recipe = small_recipe(parts)
    assert ranks(2, killed_in_step, recipe, data, url, 5) != [0, 0]
    names = Place(f"{url}/checkpoints/{steps(url)[0]}").names()
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "facts.json", MARKER} == {*names}
    another_machine(monkeypatch, tmp_path)
    again = Trainer(recipe, data, url)
    assert again.done in (2, 4)
    again.run()
    Trainer(recipe, data, tmp_path / "alone").run()
    run = brought_down(url, tmp_path / "down")
    for mine, theirs in zip(story(run), story(tmp_path / "alone"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def lose(bucket, key):
    bucket.delete_object(Bucket="runs", Key=f"{key}/__0_0.distcp")


def cut(bucket, key):
    whole = bucket.get_object(Bucket="runs", Key=f"{key}/__0_0.distcp")["Body"].read()
    bucket.put_object(Bucket="runs", Key=f"{key}/__0_0.distcp", Body=whole[:-1])


def no_marker(bucket, key):
    bucket.delete_object(Bucket="runs", Key=f"{key}/{MARKER}")


@pytest.mark.filterwarnings("ignore:.*passed over")
@pytest.mark.parametrize("harm", [lose, cut, no_marker])
def test_harmed_checkpoint_is_passed_over_and_a_copy_is_as_good(harm, bucket, url, tmp_path):
    checkpoints = saved(url, [1, 2])
    harm(bucket, f"{url.removeprefix('s3://runs/')}/step_00000002")
    into = state(0.0)
    assert checkpoints.load_newest(into) == {"step": 1}
    assert all(torch.equal(into[part][n], t) for part, tensors in state(1.0).items() for n, t in tensors.items())
    copy = tmp_path / "copy" / "step_00000001"
    copy.mkdir(parents=True)
    for name in Place(f"{url}/step_00000001").names():
        (copy / name).write_bytes(Place(f"{url}/step_00000001/{name}").read())
    assert Checkpoints(copy.parent, Workers(), 9).load_newest(state(0.0)) == {"step": 1}


def test_an_upload_that_fails_is_told_and_leaves_the_last_checkpoint(url, monkeypatch):
    checkpoints = saved(url, [1])

    def write(self, block):
        raise ConnectionError("lost")

    monkeypatch.setattr(Upload, "write", write)
    checkpoints.save(2, state(2.0), {"step": 2})
    with pytest.raises(RuntimeError, match="a checkpoint could not be written under s3://runs/"):
        checkpoints.wait()
    assert Place(f"{url}/step_00000002").names() == ["facts.json"]
    assert Checkpoints(url, Workers(), 9).load_newest(state(0.0)) == {"step": 1}


def test_what_a_killed_save_left_goes_with_the_next(url):
    Place(f"{url}/step_00000003/__7_0.distcp").write(b"half")
    saved(url, [4])
    assert Place(url).names() == ["step_00000004"]


def test_large_parts_go_up_in_pieces(url, monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.default_block_size", 5 * 2**20)
    tensors = {"model": {"a": torch.randn(2_000_000), "b": torch.randn(1_500_000)}}
    checkpoints = Checkpoints(url, Workers(), 1)
    checkpoints.save(1, tensors, {"step": 1})
    checkpoints.wait()
    into = {"model": {name: torch.zeros_like(t) for name, t in tensors["model"].items()}}
    assert checkpoints.load_newest(into) == {"step": 1}
    assert all(torch.equal(into["model"][name], t) for name, t in tensors["model"].items())


def test_going_back_and_exporting(url, tmp_path, data, parts):
    Trainer(small_recipe(parts), data, url).run()
    assert export_checkpoint(url, f"{url}-exported", 4) == 4
    assert rewind(url, 4, 1) == 4
    assert steps(url) == ["step_00000004", "step_00000002"] and "export" not in Place(url).names()
    again = Trainer(small_recipe(parts), data, url)
    assert again.done == 4 and again.data_state is not None
    theirs = Showo2.from_pretrained(f"{url}-exported").state_dict()
    export_checkpoint(url, tmp_path / "local", 4)
    mine = Showo2.from_pretrained(tmp_path / "local").state_dict()
    assert all(torch.equal(theirs[name], t) for name, t in mine.items())


def test_the_next_stage_starts_from_a_url(url, data, parts):
    Trainer(small_recipe(parts, steps=2), data, f"{url}/one").run()
    second = small_recipe(parts, start="checkpoint", name="next", steps=2)
    assert Trainer(second, data, f"{url}/two", f"{url}/one").run() == "finished"
    with pytest.raises(FileNotFoundError, match="not finished; run it again"):
        Place(f"{url}/one/export").remove()
        Trainer(second, data, f"{url}/three", f"{url}/one")
    with pytest.raises(FileNotFoundError, match="nothing has no config.json"):
        Trainer(second, data, f"{url}/three", "s3://runs/nothing")


def test_a_model_is_fetched_once_and_anew_when_it_changed(url, monkeypatch):
    for name in ("config.json", "weights", "deeper/no"):
        Place(f"{url}/{name}").write(b"one")
    folder = local_folder(url, "config.json")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights"]
    stamp = (folder / "weights").stat().st_mtime_ns
    assert local_folder(f"{url}/", "config.json") == folder and (folder / "weights").stat().st_mtime_ns == stamp
    Place(f"{url}/weights").write(b"two")
    newer = local_folder(url, "config.json")
    assert (newer / "weights").read_bytes() == b"two" and not folder.exists()


def test_a_new_run_takes_nothing_of_an_older_one_of_that_name(url, data, parts):
    Trainer(small_recipe(parts, steps=2), data, url).run()
    Place(url).remove()
    Trainer(small_recipe(parts, steps=1), data, url).run()
    assert last(f"{url}/{METRICS}")["step"] == 1
    assert len(Place(f"{url}/tensorboard").names()) == 1


def test_trackers_go_on_on_another_machine(url, tmp_path, data, parts, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asked = iter([False, False, True])
    Trainer(small_recipe(parts), data, url, stop=lambda: next(asked), track=("mlflow",)).run()
    another_machine(monkeypatch, tmp_path)
    Trainer(small_recipe(parts), data, url, track=("mlflow",)).run()
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "mlflow.db").write_bytes(Place(f"{url}/tracking/mlflow.db").read())
    assert [step for step, _ in mlflow_lines(database(tmp_path), "loss")] == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_copied_now_is_copied_later(url, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(mirror, "EVERY_S", 0.05)
    real, refused = Place.write, []

    def write(self, content):
        if len(refused) < 3:
            refused.append(self)
            raise StoreError("down")
        real(self, content)

    monkeypatch.setattr(Place, "write", write)
    work = tmp_path / "work"
    (work / "stacks").mkdir(parents=True)
    with mirror.Mirror(work, Place(url), ("config.json",), ("stacks",)):
        for name in ("config.json", "a.tmp", "stacks/rank_0.txt"):
            (work / name).write_text("x")
        while len(refused) < 3:
            time.sleep(0.01)
    assert Place(url).names() == ["config.json"]
    assert any("is behind" in str(told.message) for told in recwarn)


def test_a_bucket_that_is_not_there_is_named(bucket, data, parts, monkeypatch):
    monkeypatch.setattr("showo2.shards.remote.FIRST_WAIT", 0.001)
    with pytest.raises(StoreError, match="s3://nowhere/run/.* cannot be read: .*check the address"):
        Trainer(small_recipe(parts), data, "s3://nowhere/run").run()


def test_a_place_on_this_machine_answers_as_one_on_a_store(url, tmp_path):
    for place in (Place(tmp_path / "a"), Place(url)):
        assert place.names() == [] and place.read() is None and not place.exists()
        (place / "b").write(b"0123")
        (place / "c" / "d").write(b"")
        assert (place / "b").read(1, 3) == b"12" and (place / "b").size() == 4 and place.names() == ["b", "c"]
        assert (place / "b").digest() == Place(tmp_path / "a" / "b").digest()
        for _ in range(2):
            place.remove()
        assert place.names() == [] and not (place / "b").exists()
        (Place(tmp_path / "a") / "b").write(b"0123")
    (Place(url) / "star").write(b"")
    (Place(url) / "s*").remove()
    assert Place(url).names() == ["star"], "no patterns"
    with pytest.raises(ValueError, match="is not on this machine"):
        assert Place(url).path
