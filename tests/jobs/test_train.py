"""The command: what it refuses, how it stops, and what it hands over (the death of a Ray worker: test_train_s3)."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs import train
from showo2 import recipes
from showo2.data.mixture import Entry
from showo2.model import Showo2
from showo2.train.meters import METRICS, read
from showo2.train.recipe import Group, Recipe
from tests.train.small import small_dataset, small_parts, small_recipe, story


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The command takes all cores; what runs after these tests counts on one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return small_recipe(small_parts(tmp_path_factory.mktemp("parts")), name="small-job", steps=30, checkpoint_every=10)


def options(recipe: Recipe, data: str, out: Path) -> list[str]:
    """A tiny recipe with the small parts, as a command line."""
    m = recipe.model
    return ["tiny-distill", "--data", data, "--out", str(out), "--workers", "0", "--model.llm", m.llm,
            "--model.siglip", m.siglip, "--mixture.0.samples", "4", "--log-every", "1", "--checkpoint-every", "50"]


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit:
        train.main(list(arguments))
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_list_names_every_recipe(capsys):
    train.main(["--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in recipes.RECIPES)


def test_mistakes_are_told_in_a_line(capsys, tmp_path, data):
    run = ("--data", data, "--out", str(tmp_path / "run"))
    assert "no recipe is named 'tiny-stage9'; did you mean tiny-stage" in refused(capsys, "tiny-stage9", *run)
    assert "--stepps" in refused(capsys, "tiny-stage1", *run, "--stepps", "3")
    assert "invalid" in refused(capsys, "tiny-stage1", *run, "--steps", "many").lower()
    assert "give its run with --init RUN" in refused(capsys, "tiny-stage1", *run)
    nowhere = refused(capsys, "tiny-distill", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert "run jobs.encode" in nowhere
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, data, recipe):
    command = [sys.executable, "-m", "jobs.train", *options(recipe, data, tmp_path)]
    job = subprocess.Popen([*command, "--steps", "100000"], stderr=subprocess.PIPE, text=True)
    while len(read(tmp_path / METRICS)) < 3:
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate()
    assert job.returncode == 128 + signal.SIGTERM
    assert "run the same command again" in told
    done = story(tmp_path)[-1]["step"]
    train.main([*options(recipe, data, tmp_path), "--steps", str(done + 2)])
    assert [line["step"] for line in story(tmp_path)] == list(range(1, done + 3))
    assert (tmp_path / "export" / "config.json").is_file()


def test_a_chain_hands_over_and_scales_up(tmp_path, data, recipe, capsys):
    """The tiny ladder in small: distillation, a stage, and a wider language model that takes over its flow head."""
    wide = replace(recipe.model, llm=small_parts(tmp_path / "wide", width=48).llm)
    quick = replace(recipe, steps=2)
    stages = [
        replace(quick, name="distill", mixture=(Entry("p", "distill", "pair", 4),), groups=(Group(("semantic.",), 1e-3),)),
        replace(quick, name="stage", start="checkpoint"),
        replace(quick, name="align", start="transfer", model=wide, groups=(Group(("fusion.", "flow_head.project."), 1e-3),)),
    ]
    config = train.Train(stages[0], (data,), tmp_path / "runs", workers=0)
    assert train.train_through(config, stages) == "finished"
    told = capsys.readouterr().out
    assert "3/3 align" in told and "flow_head.project    new" in told and "language_model       dropped" in told
    small, large = (Showo2.from_pretrained(tmp_path / "runs" / name / "export") for name in ("stage", "align"))
    assert large.config.llm["hidden_size"] == 48
    kept = ("semantic.", "time_embed.", "flow_head.blocks.", "flow_head.final.")
    theirs = large.state_dict()
    assert all(torch.equal(t, theirs[name]) for name, t in small.state_dict().items() if name.startswith(kept))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/export/model.safetensors")}
    assert train.train_through(config, stages) == "finished" and len(before) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_through_is_told_what_it_lacks(capsys, data, tmp_path):
    run = ("--data", data, "--out", str(tmp_path / "runs"))
    assert "--through needs two recipes" in refused(capsys, "--through", "tiny-stage1", *run)
    assert "options of a recipe do not go with --through" in refused(
        capsys, "--through", "tiny-distill..tiny-stage1", *run, "--steps", "3")


@pytest.mark.timeout(300)
def test_fewer_workers_than_asked_for_are_enough(ray_session, tmp_path, data, recipe):
    """Two logical CPUs hold two of the three workers."""
    config = train.Train(replace(recipe, steps=2), (data,), tmp_path / "run", workers=3, min_workers=1)
    assert train.train(config) == "finished"
    facts = json.loads((tmp_path / "run" / "checkpoints" / "step_00000002" / "facts.json").read_text())
    assert facts["world"] == 2
