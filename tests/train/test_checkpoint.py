"""Checkpoints are whole or ignored, and nothing in them is executed."""

import json
import pickle

import pytest
import torch

from showo2.store import Place
from showo2.train.checkpoint import MARKER, Checkpoints, read_tensors
from showo2.train.parallel import Workers


def state(value: float) -> dict:
    return {"model": {"a": torch.full((3, 4), value), "half": torch.full((5,), value, dtype=torch.float16)},
            "optimizer": {"a.step": torch.tensor(value)}}


def saved(folder, steps, keep=9) -> Checkpoints:
    checkpoints = Checkpoints(folder, Workers(), keep)
    for step in steps:
        checkpoints.save(step, state(float(step)), {"step": step})
    checkpoints.wait()
    return checkpoints


def test_newest_comes_back_and_old_ones_go(tmp_path):
    checkpoints = saved(tmp_path, [1, 2, 10], keep=2)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step_00000002", "step_00000010"]
    into = state(0.0)
    assert checkpoints.load_newest(into) == {"step": 10}
    assert all(torch.equal(into[part][name], t) for part, tensors in state(10.0).items() for name, t in tensors.items())


def test_saved_is_what_was_there_when_it_was_asked_for(tmp_path):
    checkpoints, live = Checkpoints(tmp_path, Workers(), 3), state(1.0)
    checkpoints.save(1, live, {})
    live["model"]["a"].fill_(9.0)
    checkpoints.wait()
    checkpoints.load_newest(live)
    assert torch.equal(live["model"]["a"], state(1.0)["model"]["a"])


def no_marker(folder):
    (folder / MARKER).unlink()


def cut(folder):
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder):
    file = folder / "__0_0.distcp"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def lose_metadata(folder):
    (folder / ".metadata").unlink()


def garble_marker(folder):
    (folder / MARKER).write_text("{")


@pytest.mark.filterwarnings("ignore:.*passed over")
@pytest.mark.parametrize("harm", [no_marker, cut, flip, lose_metadata, garble_marker])
def test_harmed_checkpoint_is_passed_over(harm, tmp_path):
    checkpoints = saved(tmp_path, [1, 2])
    harm(tmp_path / "step_00000002")
    assert checkpoints.load_newest(state(0.0)) == {"step": 1}
    harm(tmp_path / "step_00000001")
    assert checkpoints.load_newest(state(0.0)) is None


def test_leftover_of_a_killed_save_is_written_over(tmp_path):
    (tmp_path / "step_00000003").mkdir()
    (tmp_path / "step_00000003" / "__7_0.distcp").write_bytes(b"half")
    checkpoints = saved(tmp_path, [3])
    assert checkpoints.load_newest(state(0.0)) == {"step": 3}
    assert not (tmp_path / "step_00000003" / "__7_0.distcp").exists()


def test_failed_save_is_told_at_the_next_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, Workers(), 3)
    real, checkpoints._write = checkpoints._write, lambda target, copy: real(target / "no such folder", copy)
    checkpoints.save(1, state(1.0), {})
    with pytest.raises(RuntimeError, match="a checkpoint could not be written under"):
        checkpoints.wait()


def test_a_failed_write_of_torch_s_own_is_told_too(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, Workers(), 3)

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoints.save(1, state(1.0), {})
    with pytest.raises(RuntimeError, match="a checkpoint could not be written under"):
        checkpoints.wait()


def test_a_file_that_goes_while_it_is_read_is_named(tmp_path):
    saved(tmp_path, [1])
    (tmp_path / "step_00000001" / "__0_0.distcp").unlink()
    with pytest.raises(OSError, match="step_00000001 cannot be read"):
        read_tensors(Place(tmp_path / "step_00000001"), ("model",))


def test_other_tensors_are_an_error_that_names_them(tmp_path):
    checkpoints, other = saved(tmp_path, [1]), state(0.0)
    other["model"]["a"] = torch.zeros(3, 5)
    with pytest.raises(ValueError, match="holds another model .*first model.a.*--out of its own"):
        checkpoints.load_newest(other)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_metadata_cannot_run_code(tmp_path, capsys):
    checkpoints = saved(tmp_path, [1])
    folder = tmp_path / "step_00000001"
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps(marker | {".metadata": Place(folder / ".metadata").digest()}))
    with pytest.raises(pickle.UnpicklingError, match="builtins.print"):
        checkpoints.load_newest(state(0.0))
    assert capsys.readouterr().out == ""
