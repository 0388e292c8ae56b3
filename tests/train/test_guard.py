"""Spikes are seen and mended; a rank that hangs says where."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from showo2.data.mixture import Entry
from showo2.train.guard import PATIENCE, WINDOW, SpikeWatch, rewind
from showo2.train.meters import METRICS, read
from showo2.train.recipe import Group
from showo2.train.trainer import Trainer
from tests.train.small import ranks, small_recipe, story


def test_a_spike_is_several_losses_far_above_the_mean():
    watch = SpikeWatch(2.0)
    assert not any(watch.add(1.0) for _ in range(WINDOW))
    assert [watch.add(9.0) for _ in range(PATIENCE)] == [False] * (PATIENCE - 1) + [True]
    assert not watch.add(9.0)  # told once


def test_one_high_loss_is_none():
    watch = SpikeWatch(2.0)
    losses = [1.0] * WINDOW + [9.0] * (PATIENCE - 1) + [1.0] * 50
    assert not any(watch.add(loss) for loss in losses)


def uids_by_step(trainer: Trainer) -> list[list[str]]:
    """Train to the end; the samples of each step."""
    seen, real = [], trainer.step

    def step(batch):
        seen.append(sorted(batch.uids))
        return real(batch)

    trainer.step = step
    trainer.run()
    return seen


def test_rewinding_leaves_out_batches_and_goes_on_after_them(tmp_path, data, parts):
    recipe = small_recipe(parts)
    before = uids_by_step(Trainer(recipe, data, tmp_path))
    assert rewind(tmp_path, 3, 2) == 2
    after = uids_by_step(Trainer(recipe, data, tmp_path))
    assert after[:2] == before[4:] and len(after) == 4
    assert [line["step"] for line in story(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match=r"no checkpoint at or before step 1; it has \[2, 4, 6\]"):
        rewind(tmp_path, 1, 2)
    with pytest.raises(ValueError, match="leave out 1 batch or more"):
        rewind(tmp_path, 6, 0)


def test_a_spike_in_a_run_is_told_with_its_samples_and_the_command(tmp_path, data, parts, monkeypatch):
    monkeypatch.setattr("showo2.train.guard.WINDOW", 3)
    monkeypatch.setattr("showo2.train.guard.PATIENCE", 1)
    recipe = small_recipe(parts, spike=0.01)  # Any loss is more than a hundredth of the mean.
    with pytest.warns(UserWarning, match=f"python -m jobs.rewind {tmp_path} --to 0 --skip 200"):
        Trainer(recipe, data, tmp_path).run()
    told = [line for line in read(tmp_path / METRICS) if "spike_uids" in line]
    assert told[0]["step"] == 4 and len(told[0]["spike_uids"]) == 8


def test_a_loss_that_rises_because_inputs_are_noised_now_is_no_spike(tmp_path, data, parts, monkeypatch):
    monkeypatch.setattr("showo2.train.guard.WINDOW", 1)
    monkeypatch.setattr("showo2.train.guard.PATIENCE", 1)
    recipe = small_recipe(parts, mixture=(Entry("pictures", "distill", "pair", 8),), spike=0.01, steps=4,
                          groups=(Group(("semantic.",), 1e-3),), noised_steps=3)
    with pytest.warns(UserWarning, match="stands above"):
        Trainer(recipe, data, tmp_path).run()
    told = [line["step"] for line in read(tmp_path / METRICS) if "spike_uids" in line]
    assert told == [3]  # Of steps 2 and 3; step 1 was the last without noise.


def hang(workers, recipe, data, out):
    """Rank 1 sleeps in its third step; rank 0 waits for it."""
    trainer = Trainer(recipe, data, out, workers=workers)
    real = trainer.objective.sums

    def sums(micro):
        if workers.rank == 1 and trainer.done == 2:
            time.sleep(60)
        return real(micro)

    trainer.objective.sums = sums
    trainer.run()


def again(workers, recipe, data, out):
    Trainer(recipe, data, out, workers=workers).run()


def test_every_rank_of_a_hung_step_says_where_it_stands(tmp_path, data, parts, capfd):
    assert ranks(2, hang, small_recipe(parts, hang_s=5.0), data, tmp_path) != [0, 0]
    # Whose clock ran out first ended, and the other was killed, as Ray and torchrun do.
    stacks = [path.read_text() for path in (tmp_path / "stacks").iterdir()]
    assert len(stacks) == 2 and any("trainer.py" in text and "in run" in text for text in stacks)
    assert ranks(2, again, small_recipe(parts), data, tmp_path) == [0, 0]
    assert "hung; where it stood" in capfd.readouterr().err
    assert story(tmp_path)[-1]["step"] == 6


def test_the_command_says_what_it_did(tmp_path, data, parts):
    Trainer(small_recipe(parts), data, tmp_path).run()
    told = subprocess.run([sys.executable, "-m", "jobs.rewind", str(tmp_path), "--to", "5", "--skip", "3"],
                          capture_output=True, text=True, check=True, env=os.environ, cwd=Path(__file__).parents[2])
    assert "goes on from step 4 and leaves out 3 batches" in told.stdout
