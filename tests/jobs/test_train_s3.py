"""The commands with everything on an object store: data, the run, what is started from and drawn with."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from jobs import train, watch
from jobs.generate import Generate, generate
from showo2.store import Place
from showo2.tiny import resolve
from showo2.train.checkpoint import newest_step
from showo2.train.meters import METRICS, last
from tests.s3 import store
from tests.train.small import small_dataset, small_parts, small_recipe, story


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket with the small dataset in it."""
    folder = tmp_path_factory.mktemp("data")
    small_dataset(folder)
    with store("training") as client:
        Place("s3://training/data").put(folder)
        yield client


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A cache of each test's own, and as many threads after it as before: the command takes all cores."""
    monkeypatch.setenv("SHOWO2_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(600)
def test_ray_workers_survive_the_death_of_one_and_a_note_and_another_machine_goes_on(bucket, tmp_path, monkeypatch):
    parts, out = small_parts(tmp_path / "parts"), "s3://training/runs/one"
    options = ["tiny-distill", "--data", "s3://training/data", "--model.llm", parts.llm, "--model.siglip", parts.siglip,
               "--mixture.0.samples", "4", "--log-every", "1", "--checkpoint-every", "20", "--schedule", "constant",
               "--noised-steps", "0", "--groups.0.lr", "1e-5", "--parallel.precision", "fp32"]
    job = subprocess.Popen([sys.executable, "-m", "jobs.train", *options, "--out", out, "--workers", "2", "--steps", "100000"],
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    first = checkpoint_after(job, out, 0)
    worker = next(process for process in psutil.Process(job.pid).children(recursive=True)
                  if "RayTrainWorker" in " ".join(process.cmdline()))
    worker.kill()
    # One checkpoint may have been on its way when the worker died; the one behind it is the new group's.
    checkpoint_after(job, out, 20 + max(first, newest_step(f"{out}/checkpoints")))
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGTERM, told
    done = last(f"{out}/{METRICS}")["step"]
    assert newest_step(f"{out}/checkpoints") == done
    assert json.loads(Place(f"{out}/outcome.json").read()) == {"outcome": "stopped", "error": ""}
    monkeypatch.setenv("SHOWO2_CACHE", str(tmp_path / "another"))
    train.main([*options, "--out", out, "--workers", "0", "--steps", str(done + 2)])
    assert Place(f"{out}/export/training.json").exists()
    train.main([*options, "--out", str(tmp_path / "alone"), "--workers", "0", "--steps", str(done + 2)])
    (tmp_path / METRICS).write_bytes(Place(f"{out}/{METRICS}").read() or b"")
    mine, theirs = story(tmp_path), story(tmp_path / "alone")
    assert len(mine) == done + 2
    for one, other in zip(mine, theirs, strict=True):
        assert [one["step"], one["loss"]] == pytest.approx([other["step"], other["loss"]], rel=1e-4)


def checkpoint_after(job: subprocess.Popen, out: str, step: int) -> int:
    """Wait for a checkpoint later than `step`; its step."""
    while (newest := newest_step(f"{out}/checkpoints")) <= step:
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.1)
    return newest


def test_a_chain_hands_over_and_its_pictures_are_drawn(bucket, tmp_path):
    small = small_parts(tmp_path / "parts")
    where = {name: f"s3://training/parts/{name}" for name in ("llm", "siglip", "vae")}
    for name, folder in {"llm": small.llm, "siglip": small.siglip, "vae": resolve("tiny:vae")}.items():
        Place(where[name]).put(Path(folder))
    Place("s3://training/taken_down.txt").write(b"0" * 32)
    parts = replace(small, **where)
    first = small_recipe(parts, name="first", steps=2, blocklist="s3://training/taken_down.txt")
    stages = [first, replace(first, name="second", start="checkpoint")]
    config = train.Train(first, ("s3://training/data",), "s3://training/chain", workers=0)
    for _ in range(2):
        assert train.train_through(config, stages) == "finished"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n')
    asked = Generate(tmp_path / "prompts.jsonl", "s3://training/pictures", "s3://training/chain/second/export", points=2,
                     device="cpu")
    assert len(generate(asked)["files"]) == 1 and Place("s3://training/pictures/00000.png").exists()
    made = watch.watch(watch.Watch("s3://training/chain/second", once=True, points=2, prompts=asked.prompts))
    assert [place.where for place in made] == ["s3://training/chain/second/samples/step_00000002.png"]
    assert {"answers.jsonl", "step_00000002.png"} == {*Place("s3://training/chain/second/samples").names()}
    assert len(Place("s3://training/chain/second/tensorboard").names()) == 2


def test_a_bucket_that_is_not_there_is_told_in_a_line(bucket, tmp_path, capsys):
    parts = small_parts(tmp_path / "parts")
    with pytest.raises(SystemExit) as exit:
        train.main(["tiny-distill", "--data", "s3://training/data", "--out", "s3://nowhere/run", "--workers", "0",
                    "--model.llm", parts.llm, "--model.siglip", parts.siglip])
    assert exit.value.code == 2
    assert "error: s3://nowhere/run/config.json cannot be read" in capsys.readouterr().err
