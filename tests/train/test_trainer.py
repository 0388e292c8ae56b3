"""One process: runs are reproducible, survive kills and bad data, and say what is wrong."""

import os
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from showo2.data.loader import Batch
from showo2.data.mixture import Entry
from showo2.model import Showo2
from showo2.sequence import Text, pack
from showo2.train.meters import METRICS, read
from showo2.train.recipe import NEW_PARTS, Group, Parallel
from showo2.train.start import export_checkpoint
from showo2.train.trainer import Diverged, Trainer
from tests.train.small import ranks, small_dataset, small_recipe, story


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, parts):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert Trainer(small_recipe(parts), data, out).run() == "finished"
    return out


def weights(run: Path) -> bytes:
    return (run / "export" / "model.safetensors").read_bytes()


def assert_same(run: Path, other: Path) -> None:
    assert story(run) == story(other)
    assert weights(run) == weights(other)


def test_two_runs_with_one_seed_are_bit_equal(whole, tmp_path, data, parts):
    Trainer(small_recipe(parts), data, tmp_path).run()
    assert_same(tmp_path, whole)
    assert len(story(whole)) == 6


def readers_of_this_process():
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_reading_processes_change_nothing_and_end_with_the_run(whole, tmp_path, data, parts):
    before, during = len(readers_of_this_process()), []

    def stop():
        during.append(len(readers_of_this_process()))
        return False

    Trainer(small_recipe(parts, readers=2), data, tmp_path, stop=stop).run()
    assert_same(tmp_path, whole)
    assert set(during) == {before + 2} and len(readers_of_this_process()) == before


def test_another_seed_is_another_run(whole, tmp_path, data, parts):
    Trainer(small_recipe(parts, seed=1, steps=1), data, tmp_path).run()
    assert story(tmp_path)[0]["loss"] != story(whole)[0]["loss"]


def test_autocast_rounds_products_and_keeps_weights(whole, tmp_path, data, parts, monkeypatch):
    monkeypatch.setattr("showo2.train.trainer.has_bf16", lambda: True)  # It works everywhere, only slower.
    Trainer(small_recipe(parts, parallel=Parallel(precision="autocast")), data, tmp_path).run()
    rounded, exact = ([step["loss"] for step in story(run)] for run in (tmp_path, whole))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    assert all(p.dtype == torch.float32 for p in Showo2.from_pretrained(tmp_path / "export").parameters())


def killed_in_step(workers, recipe, data, out, step):
    asked = iter(range(100))

    def stop():
        if next(asked) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    Trainer(recipe, data, out, workers=workers, stop=stop).run()


def killed_in_save(workers, recipe, data, out, step):
    def saving(facts):
        if facts["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer(recipe, data, out, workers=workers, on_checkpoint=saving).run()


@pytest.mark.parametrize(("run", "step"), [(killed_in_step, 5), (killed_in_save, 4)])
def test_killed_and_run_again_is_bit_equal(run, step, whole, tmp_path, data, parts):
    recipe = small_recipe(parts)
    assert ranks(1, run, recipe, data, tmp_path, step) == [-signal.SIGKILL]
    again = Trainer(recipe, data, tmp_path)
    assert again.done in (2, 4)
    again.run()
    assert_same(tmp_path, whole)


def test_stopped_on_request_and_run_again_is_bit_equal(whole, tmp_path, data, parts):
    recipe = small_recipe(parts)
    asked = iter([False, False, True])
    assert Trainer(recipe, data, tmp_path, stop=lambda: next(asked)).run() == "stopped"
    assert not (tmp_path / "export").exists()
    again = Trainer(recipe, data, tmp_path)
    assert again.done == 3
    assert again.run() == "finished"
    assert_same(tmp_path, whole)


def test_a_notice_saves_and_the_run_goes_on(tmp_path, data, parts):
    asked = iter([False, False, True, False])
    trainer = Trainer(small_recipe(parts, checkpoint_every=9, steps=4), data, tmp_path, save_now=lambda: next(asked))
    assert trainer.run() == "finished"
    assert sorted(folder.name[-1] for folder in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_damaged_newest_checkpoint_is_passed_over(whole, tmp_path, data, parts):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    newest, second = sorted((out / "checkpoints").iterdir(), reverse=True)[:2]
    shard = next(newest.glob("__0*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    (second / "COMMITTED").unlink()
    with pytest.warns(UserWarning, match="step_00000006 is damaged and passed over: __0_0.distcp"):
        again = Trainer(small_recipe(parts), data, out)
    assert again.done == 2
    again.run()
    assert_same(out, whole)


def test_finished_run_has_nothing_left_to_do(whole, data, parts):
    before = story(whole)
    assert Trainer(small_recipe(parts), data, whole).run() == "finished"
    assert story(whole) == before


@pytest.mark.parametrize("task", ["generate", "caption", "converse"])
def test_any_single_modality_trains(task, tmp_path, data, parts):
    kind = "conversation" if task == "converse" else "pair"
    recipe = small_recipe(parts, mixture=(Entry(task, task, kind, 4),), steps=2, checkpoint_every=9)
    Trainer(recipe, data, tmp_path).run()
    last = story(tmp_path)[-1]
    assert (last["flow"] > 0) == (task == "generate")
    assert (last["ntp"] > 0) == (task != "generate")
    assert last["grad_norm"] > 0


def test_text_only_batch_trains(tmp_path, data, parts):
    trainer = Trainer(small_recipe(parts), data, tmp_path)
    text = pack([[[Text([1, 2, 3, 4], True)]]], 96, trainer.tokenizer.special)
    step = trainer.step(Batch([text], ["a"], [], 4, {}))
    assert step.finite and step.norm > 0 and step.terms["flow"] == 0


def poison(monkeypatch, steps):
    """Give the samples of these steps a latent that is no number."""
    real = Trainer.step

    def step(self, batch):
        if self.done in steps:
            visuals = batch.micro[0].visuals[0]
            visuals.latents[0, 0, 0, 0, 0] = float("nan")
        return real(self, batch)

    monkeypatch.setattr(Trainer, "step", step)


def test_non_finite_step_is_skipped_counted_and_named(tmp_path, data, parts, monkeypatch):
    poison(monkeypatch, {1})
    trainer = Trainer(small_recipe(parts, steps=3), data, tmp_path)
    with pytest.warns(UserWarning, match="step 2 is not finite .* skipped; its 8 samples: [0-9a-f]{32}"):
        trainer.run()
    skipped = [line for line in read(tmp_path / METRICS) if "skipped_uids" in line]
    assert len(skipped) == 1 and skipped[0]["step"] == 2 and len(skipped[0]["skipped_uids"]) == 8
    assert story(tmp_path)[-1]["skipped"] == 1
    assert all(torch.isfinite(p).all() for p in Showo2.from_pretrained(tmp_path / "export").parameters())


def test_too_many_non_finite_steps_stop_the_run(tmp_path, data, parts, monkeypatch):
    poison(monkeypatch, {0, 1, 2})
    with warnings.catch_warnings(), pytest.raises(Diverged, match="more than max_skipped=1; the last samples: [0-9a-f]"):
        warnings.simplefilter("ignore")
        Trainer(small_recipe(parts, max_skipped=1), data, tmp_path).run()


def flip_a_latent(folder: Path) -> None:
    shard = folder / "latents" / "web-0.arrow"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)


def test_damaged_rows_are_skipped_counted_and_named(tmp_path, parts):
    path = small_dataset(tmp_path / "data")
    flip_a_latent(tmp_path / "data")
    recipe = small_recipe(parts, mixture=(Entry("generate", "generate", "pair", 16),), steps=3, checkpoint_every=9)
    Trainer(recipe, (path,), tmp_path / "run").run()
    lines = read(tmp_path / "run" / METRICS)
    lost = [message for line in lines for message in line.get("lost_rows", [])]
    assert len(lost) == 1 and "web-0.arrow" in lost[0] and "uid" in lost[0]
    assert story(tmp_path / "run")[-1]["lost"] == 1
    with pytest.raises(Diverged, match="more than max_damaged=0; the last ones: row .*web-0.arrow"):
        Trainer(replace(recipe, max_damaged=0), (path,), tmp_path / "strict").run()


def test_any_checkpoint_can_be_exported(whole, tmp_path):
    assert export_checkpoint(whole, tmp_path / "average") == 6
    assert (tmp_path / "average" / "model.safetensors").read_bytes() == weights(whole)
    assert export_checkpoint(whole, tmp_path / "raw", 4, averaged=False) == 4
    raw = Showo2.from_pretrained(tmp_path / "raw").state_dict()
    averaged = Showo2.from_pretrained(tmp_path / "average").state_dict()
    assert not torch.equal(raw["fusion.1.weight"], averaged["fusion.1.weight"])
    assert (tmp_path / "raw" / "tokenizer.json").is_file()
    with pytest.raises(ValueError, match=r"no checkpoint of step 5; it has \[2, 4, 6\]"):
        export_checkpoint(whole, tmp_path / "no", 5)


def test_stages_hand_over_and_frozen_parts_stay(tmp_path, data, parts):
    distill = small_recipe(parts, name="distill", mixture=(Entry("pictures", "distill", "pair", 8),),
                           groups=(Group(("semantic.",), 1e-3),), noised_steps=2, steps=3)
    Trainer(distill, data, tmp_path / "a").run()
    assert 0 < story(tmp_path / "a")[-1]["cosine"] < 1
    stage1 = small_recipe(parts, name="stage1", start="checkpoint", groups=(Group(NEW_PARTS, 1e-3),), steps=2)
    Trainer(stage1, data, tmp_path / "b", str(tmp_path / "a")).run()
    before, after = (Showo2.from_pretrained(tmp_path / run / "export").state_dict() for run in "ab")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(NEW_PARTS) for name in moved)
    assert {name.split(".")[0] + "." for name in moved} >= set(NEW_PARTS) - {"time_project."}


@pytest.mark.parametrize(("changes", "init", "message"), [
    ({"start": "checkpoint"}, None, "goes on from an earlier stage: give its run with --init RUN"),
    ({}, "somewhere", "starts from its parts .*: leave out --init"),
    ({"mixture": (Entry("x", "caption", "pair", 1, ("coyo",)),)}, None,
     "entry x needs rows of kind pair of coyo in bucket 1x8x8, and there are none: small has .*web pair 1x8x8"),
    ({"groups": (Group(("fusion.", "flow_head."), 1.0), Group(("flow_head.final.",), 1.0))}, None,
     "flow_head.final.* is in learning-rate groups"),
])
def test_what_cannot_run_says_why(changes, init, message, tmp_path, data, parts):
    with pytest.raises(ValueError, match=message):
        Trainer(small_recipe(parts, **changes), data, tmp_path, init)


def test_folder_of_another_run_is_not_overwritten(whole, data, parts):
    with pytest.raises(ValueError, match="holds a run of small; give other an --out of its own"):
        Trainer(small_recipe(parts, name="other"), data, whole)
    with pytest.raises(ValueError, match="holds another model or another set of trained parameters"):
        Trainer(small_recipe(parts, groups=(Group(("fusion.",), 1e-3),)), data, whole)


def test_unfinished_run_cannot_be_gone_on_from(tmp_path, data, parts):
    Trainer(small_recipe(parts), data, tmp_path / "a", stop=lambda: True).run()
    with pytest.raises(FileNotFoundError, match="not finished; run it again"):
        Trainer(small_recipe(parts, start="checkpoint"), data, tmp_path / "b", str(tmp_path / "a"))
