"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, each fed by a process of its own.

That process follows RUN/metrics.jsonl and passes its lines on, so a tracker that is slow or down costs the trainer
nothing: lines wait in the file until it answers. RUN/tracking/NAME.json remembers the tracker's run and the last step
that it was told; a resumed run continues both. What a tracker has missed can be sent by hand, later and again:

python -m showo2.train.tracking wandb|mlflow RUN
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

Name = Literal["wandb", "mlflow"]
Line = dict[str, float]

FOLDER = "tracking"
# What of it a run needs that goes on elsewhere.
KEPT = ("wandb.json", "mlflow.json", "mlflow.db")
# The project (wandb) and experiment (MLflow) of runs, unless the environment names another.
PROJECT = "showo2"
EVERY_S, LONGEST_S = 2.0, 300.0  # between looks at the file; between tries where the tracker does not answer
FAREWELL_S = 30.0  # that the end of a run waits for a tracker
_ROWS = 1000  # MLflow takes as many values at once


def check(names: Sequence[str]) -> None:
    """Raise ValueError where the package of a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--track {name} needs a package that is not installed: pip install 'showo2-ray[{name}]'")


class Trackers:
    """The processes that feed the trackers `names` from the run in `run`; the first rank has them, as a context.

    start: the step that this attempt goes on from; later ones are told (again). label: what people call the run.
    `outcome` is what trackers hear at the end; a run that ends with an exception has failed.
    """

    def __init__(self, names: Sequence[str], run: Path, label: str, start: int):
        self.outcome = "stopped"
        # Trackers must find the project where the trainer did, installed or not.
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        commands = [[sys.executable, "-m", __name__, name, str(run), label, str(start)] for name in names]
        # A session of their own: Ctrl-C is for the trainer, who ends them.
        self._processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                            env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
                           for command in commands]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Tell how the run ended, and give the trackers `FAREWELL_S` seconds together to hear the rest."""
        outcome = "failed" if kind else self.outcome
        deadline = time.monotonic() + FAREWELL_S
        for process in self._processes:
            with suppress(OSError):  # It may have died.
                assert process.stdin is not None
                process.stdin.write(outcome.encode())
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Wandb:
    """A run of Weights & Biases: where, with which key, and whether online, is said by its own variables (WANDB_*)."""

    def __init__(self, run: Path, label: str, config: dict[str, Any], known: str | None):
        import wandb

        settings = wandb.Settings(console="off", silent=True, finish_timeout=FAREWELL_S)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=label, id=known, resume="allow", config=config,
            dir=os.environ.get("WANDB_DIR", str(run / FOLDER)), allow_val_change=True, settings=settings)
        self.id: str = self._run.id
        # Steps that are made again after a crash are told again: wandb's own counter would refuse them.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, lines: list[Line]) -> None:
        """Hand the lines to wandb, which sends them in a process of its own."""
        for line in lines:
            self._run.log(line)

    def finish(self, outcome: str) -> None:
        """End the run, after what is not yet sent."""
        self._run.finish(exit_code=int(outcome == "failed"))


class Mlflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or else in a database in the run's folder."""

    def __init__(self, run: Path, label: str, config: dict[str, Any], known: str | None):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        local = f"sqlite:///{(run / FOLDER / 'mlflow.db').absolute()}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            known = self._client.create_run(number, run_name=label).info.run_id
        self.id: str = known
        self._client.update_run(self.id, status="RUNNING")
        if not self._client.get_run(self.id).data.params:  # They cannot be changed, only told once.
            params = [Param(name, str(value)[:500]) for name, value in _flat(config)]
            for start in range(0, len(params), 100):
                self._client.log_batch(self.id, params=params[start:start + 100])

    def log(self, lines: list[Line]) -> None:
        """Send the lines."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(name, value, now, int(line["step"])) for line in lines for name, value in line.items()
                  if name != "step"]
        for start in range(0, len(values), _ROWS):
            self._client.log_batch(self.id, metrics=values[start:start + _ROWS])

    def finish(self, outcome: str) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.id, {"finished": "FINISHED", "stopped": "KILLED"}.get(outcome, "FAILED"))


_TRACKERS: dict[str, type[Wandb | Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def feed(name: str, run: Path, label: str, start: int | None) -> bool:
    """Pass on the lines of `run` until standard input says how it ended; then what is left, for `FAREWELL_S` seconds.

    start: see `Trackers`; None: what is there is all. Returns whether everything was passed on.
    """
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    with (run / FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The process of an attempt that was killed may still be at it.
        return _feed(name, run, label, start)


def _feed(name: str, run: Path, label: str, start: int | None) -> bool:
    note = run / FOLDER / f"{name}.json"
    known: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {"id": None, "step": 0}
    if start is not None:
        known["step"] = min(known["step"], start)
    outcome, deadline = ("finished", 0.0) if start is None else ("", float("inf"))
    config = json.loads((run / "config.json").read_text())
    tail = _Tail(run / "metrics.jsonl", known["step"])
    tracker: Wandb | Mlflow | None = None
    wait, told = 0.0, False
    while True:
        if not outcome and (outcome := _ending(wait)):
            deadline = time.monotonic() + FAREWELL_S
        elif outcome:
            time.sleep(wait)
        try:
            if tracker is None:
                tracker = _TRACKERS[name](run, label, config, known["id"])
                _keep(note, known := known | {"id": tracker.id})
            if lines := tail.lines():
                tracker.log(lines)
                tail.waiting = []
                _keep(note, known := known | {"step": int(lines[-1]["step"])})
            if outcome:
                tracker.finish(outcome)
                return True
            wait, told = EVERY_S, False
        except Exception as error:  # noqa: BLE001 (every tracker fails in its own way, and none may matter)
            if not told:
                print(f"{name} cannot be told of the run: {error}; training goes on, and {name} is tried again",
                      file=sys.stderr)
            told, wait = True, min(2 * max(wait, EVERY_S / 2), LONGEST_S)
        if outcome and time.monotonic() + wait > deadline:
            return False


def _ending(wait: float) -> str:
    """How the run ended, as soon as that is known; empty if `wait` seconds do not tell."""
    if not select.select([0], [], [], wait)[0]:
        return ""
    return os.read(0, 64).decode() or "failed"


class _Tail:
    """A metrics file that grows: its lines of meters (not events) of steps later than `after`, numbers only.

    waiting: what was read and not yet taken away by whoever passed it on.
    """

    def __init__(self, path: Path, after: int):
        self.after, self.waiting = after, list[Line]()
        self._file, self._part = path.open(), ""

    def lines(self) -> list[Line]:
        """All lines that wait."""
        *whole, self._part = (self._part + self._file.read()).split("\n")
        lines = [json.loads(text) for text in whole]
        self.waiting += [{name: value for name, value in line.items() if isinstance(value, int | float)}
                         for line in lines if line["step"] > self.after and "step_s" in line]
        return self.waiting


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists, as (dotted name, value)."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _keep(note: Path, known: dict[str, Any]) -> None:
    temporary = note.with_suffix(".tmp")
    temporary.write_text(json.dumps(known))
    temporary.rename(note)


def main(arguments: list[str]) -> int:
    """NAME RUN by hand; NAME RUN LABEL START for the trainer. Returns the exit code."""
    name, run, *rest = arguments
    try:
        done = feed(name, Path(run), rest[0] if rest else Path(run).absolute().name, int(rest[1]) if rest else None)
    except OSError as error:
        print(f"error: {run} is no run of jobs.train: {error}", file=sys.stderr)
        return 2
    return 0 if done else 1


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in _TRACKERS:
        sys.exit(__doc__)
    os.nice(10)
    # Nobody else is told of the run than whom the user named.
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    # Not by returning: what a tracker does at exit may wait for a server that does not answer.
    os._exit(main(sys.argv[1:]))
