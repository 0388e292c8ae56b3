"""Trackers are told what the metrics file tells, over restarts, and cannot harm a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from wandb.proto.wandb_internal_pb2 import Record

from showo2.train import tracking
from showo2.train.meters import METRICS, read
from showo2.train.trainer import Trainer
from tests.train.small import ranks, small_recipe, story


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No server of anybody's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def records(file: Path) -> list[Record]:
    """What wandb wrote offline: LevelDB's log format (blocks of 32 KiB; checksum, length, type) after 7 bytes."""
    data, place, whole, found = file.read_bytes(), 7, b"", []
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4:place + 6], "little"), data[place + 6]
        whole += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(whole))
            whole = b""
    return found


def wandb_lines(run: Path) -> tuple[set[str], list[dict[str, float]]]:
    """Ids of wandb's runs under `run`, and the lines that they were told."""
    found = [r for file in sorted(run.glob("tracking/wandb/offline-run-*/*.wandb")) for r in records(file)]
    rows = [r.history for r in found if r.HasField("history")]
    lines = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in row.item} for row in rows]
    return {r.run.run_id for r in found if r.HasField("run")}, lines


def mlflow_lines(uri: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric of the only run there."""
    [run] = runs(uri)
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def runs(uri: str) -> list:
    client = MlflowClient(uri)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def database(run: Path) -> str:
    return f"sqlite:///{run}/tracking/mlflow.db"


def told(run: Path) -> dict[str, int]:
    """The last step that each tracker has heard of."""
    return {note.stem: json.loads(note.read_text())["step"] for note in run.glob("tracking/*.json")}


def test_both_hear_what_the_metrics_file_tells(tmp_path, data, parts):
    run = tmp_path / "run"
    Trainer(small_recipe(parts), data, run, track=("wandb", "mlflow")).run()
    wanted = [(line["step"], line["loss"]) for line in story(run)]
    assert mlflow_lines(database(run), "loss") == wanted and len(wanted) == 6
    [mine] = runs(database(run))
    assert mine.info.status == "FINISHED" and mine.info.run_name == "run"
    assert mine.data.params["recipe.name"] == "small" and mine.data.params["recipe.mixture.0.samples"] == "4"
    ids, lines = wandb_lines(run)
    assert len(ids) == 1 and [(line["step"], line["loss"]) for line in lines] == wanted
    assert {"lr", "grad_norm", "goodput", "samples_per_s"} <= lines[0].keys()


def test_a_killed_run_goes_on_in_the_same_runs(tmp_path, data, parts, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/all.db")
    run, recipe = tmp_path / "run", small_recipe(parts, steps=8)
    assert ranks(1, killed_once_told, recipe, data, run, 5) == [-signal.SIGKILL]
    Trainer(recipe, data, run, track=("wandb", "mlflow")).run()
    ids, lines = wandb_lines(run)
    assert len(ids) == 1 and {line["step"] for line in lines} == set(range(1, 9))
    values = mlflow_lines(f"sqlite:///{tmp_path}/all.db", "loss")
    assert set(values) == {(line["step"], line["loss"]) for line in story(run)}, "steps made again came out the same"
    assert len(values) > 8 and runs(f"sqlite:///{tmp_path}/all.db")[0].info.status == "FINISHED"


def killed_once_told(workers, recipe, data, out, step):
    asked = iter(range(100))

    def stop():
        if next(asked) == step:
            while told(out) != {"wandb": step, "mlflow": step}:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    Trainer(recipe, data, out, workers=workers, stop=stop, track=("wandb", "mlflow")).run()


def test_a_tracker_that_is_down_changes_nothing_and_hears_all_later(tmp_path, data, parts, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "FAREWELL_S", 1.0)
    recipe = small_recipe(parts)
    Trainer(recipe, data, tmp_path / "alone").run()
    begin = time.monotonic()
    Trainer(recipe, data, tmp_path / "run", track=("wandb", "mlflow")).run()
    assert time.monotonic() - begin < 30
    assert story(tmp_path / "run") == story(tmp_path / "alone")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    by_hand = [sys.executable, "-m", "showo2.train.tracking", "mlflow", str(tmp_path / "run")]
    for _ in range(2):
        assert subprocess.run(by_hand, check=False).returncode == 0
    assert mlflow_lines(database(tmp_path / "run"), "loss") == [(s["step"], s["loss"]) for s in story(tmp_path / "run")]


def test_events_are_not_told(tmp_path):
    lines = [{"step": 1, "loss": 2.0, "step_s": 0.1}, {"step": 2, "loss": "nan", "skipped_uids": ["a"]},
             {"step": 3, "loss": 1.0, "step_s": 0.1, "name": "x"}]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    tail = tracking._Tail(tmp_path / METRICS, after=1)
    assert tail.lines() == [{"step": 3, "loss": 1.0, "step_s": 0.1}]
    with (tmp_path / METRICS).open("a") as file:
        file.write('ss": 0.5, "step_s": 0.1}\n')
    assert [line["step"] for line in tail.lines()] == [3, 4] and len(read(tmp_path / METRICS)) == 4


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--track wandb needs .*pip install 'showo2-ray\[wandb\]'"):
        tracking.check(("wandb",))
