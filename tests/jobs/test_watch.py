"""Samples beside a run that trains, in a process of their own."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import watch
from jobs._sheet import sheet
from showo2.train.trainer import Trainer
from tests.train.small import small_dataset, small_parts, small_recipe


def run_of(tmp_path: Path, **changes: object) -> Trainer:
    parts = replace(small_parts(tmp_path / "parts"), vae="tiny:vae")
    return Trainer(small_recipe(parts, **changes), (small_dataset(tmp_path / "data"),), tmp_path / "run")


def test_samples_follow_a_run_to_its_end(tmp_path):
    torch.set_num_threads(1)
    trainer = run_of(tmp_path, steps=4)
    command = [sys.executable, "-m", "jobs.watch", str(tmp_path / "run"), "--every-s", "0.2", "--points", "2"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert trainer.run() == "finished"
    said, _ = watching.communicate(timeout=100)
    assert watching.returncode == 0, said
    made = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert made[0] == "answers.jsonl" and made[-1] == "step_00000004.png", "no half-made file, no export is left"
    assert all(name.startswith("step_") for name in made[1:])
    lines = [json.loads(line) for line in (tmp_path / "run/samples/answers.jsonl").read_text().splitlines()]
    assert [f"step_{line['step']:08d}.png" for line in lines] == made[1:]
    assert all(len(line["answers"]) == 10 for line in lines)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0}).Reload()
    assert [event.step for event in board.Images("samples")][-1] == 4
    assert watch.watch(watch.Watch(tmp_path / "run", once=True)) == [], "what is drawn is not drawn again"


def test_once_draws_the_prompts_of_a_file(tmp_path):
    run_of(tmp_path, steps=2).run()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red circle"}\n{"prompt": "a blue square"}\n')
    watch.main([str(tmp_path / "run"), "--once", "--points", "2", "--prompts", str(prompts)])
    with Image.open(tmp_path / "run" / "samples" / "step_00000002.png") as picture:
        assert picture.size[0] > picture.size[1], "two pictures beside each other"


def test_what_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        watch.main([str(tmp_path), "--once"])
    assert exit.value.code == 2
    assert "is no run of jobs.train" in capsys.readouterr().err


def test_a_sheet_has_a_cell_for_each_picture():
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    made = sheet(pictures, ["a", "b", "a text that is far too long for the width of the picture above it"], 2, 32)
    assert made.getpixel((20, 20)) == (255, 0, 0) and made.getpixel((60, 20)) == (0, 128, 0)
    assert made.size[1] > 2 * 32
