"""Actors that die, grow old or are slow cost nothing but time."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import actors
from pipelines.actors import run_actors
from pipelines.progress import StageProgress
from pipelines.run import RunFailed

Task = dict[str, Any]


class Worker:
    """Does what the task says, after it has noted in `folder` that it began."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, task: Task) -> Task:
        path = task["path"]
        attempt = len(list(self.folder.glob(f"{path}.*")))
        (self.folder / f"{path}.{attempt}").write_text(str(os.getpid()))
        if attempt < task.get("deaths", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if "error" in task:
            raise OSError(task["error"])
        if attempt == 0:
            time.sleep(task.get("first_sleeps", 0))
        return {"path": path, "attempt": attempt, "rows": 1}


def of_a_bad_model() -> Callable[[Task], Task]:
    """A set-up that fails."""
    raise ValueError("there is no such model")


def dies_at_once() -> Callable[[Task], Task]:
    """A set-up that does not survive."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def run(folder: Path, tasks: list[Task], workers: int | None = 2, twice: bool = True) -> dict[str, int]:
    """{path: number of the attempt whose result counts}."""
    with StageProgress("test", len(tasks)) as progress:
        results = run_actors(Worker, {"folder": str(folder)}, tasks, workers, progress, twice=twice)
        assert progress.finished == progress.rows == len(tasks) and progress.still_running() == []
    assert len(results) == len(tasks)
    return {result["path"]: result["attempt"] for result in results}


def begun(folder: Path) -> Counter[str]:
    """How often each task began."""
    return Counter(path.stem for path in folder.iterdir())


@pytest.mark.parametrize("workers", [0, None])
def test_every_task_is_done_once(tmp_path, ray_session, workers):
    tasks = [{"path": f"unit{number}"} for number in range(5)]
    assert run(tmp_path, tasks, workers) == {task["path"]: 0 for task in tasks}
    assert set(begun(tmp_path).values()) == {1}


def test_a_unit_that_cannot_be_read_harms_no_other(tmp_path):
    tasks = [{"path": "bad", "error": "no such tar"}] + [{"path": f"unit{number}"} for number in range(3)]
    with pytest.raises(RunFailed, match="1 of 4 units failed: bad: OSError: no such tar"):
        run(tmp_path, tasks, workers=0)
    assert set(begun(tmp_path)) == {task["path"] for task in tasks}


def test_the_unit_of_a_killed_worker_is_done_by_another(tmp_path, ray_session):
    tasks = [{"path": "calm"}, {"path": "killed", "deaths": 2}, {"path": "later"}]
    assert run(tmp_path, tasks) == {"calm": 0, "killed": 2, "later": 0}


def test_a_unit_that_kills_every_worker_is_given_up_and_named(tmp_path, ray_session):
    tasks = [{"path": "deadly", "deaths": 100}, {"path": "calm"}, {"path": "bad", "error": "no tar"}, {"path": "later"}]
    with pytest.raises(RunFailed, match="2 of 4 units failed: bad: OSError: no tar; deadly: its worker died 3 times"):
        run(tmp_path, tasks)
    assert begun(tmp_path) == {"deadly": actors.ATTEMPTS, "calm": 1, "bad": 1, "later": 1}


def test_an_actor_makes_room_for_a_new_one_after_some_units(tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr(actors, "RECYCLE_AFTER", 2)
    run(tmp_path, [{"path": f"unit{number}"} for number in range(5)], workers=1)
    units = Counter(path.read_text() for path in tmp_path.iterdir())
    assert sorted(units.values()) == [1, 2, 2]


def test_a_straggler_is_started_a_second_time_and_the_first_result_counts(tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr(actors, "STRAGGLER_SECONDS", 0.1)
    tasks = [{"path": "slow", "first_sleeps": 3600}, *({"path": f"unit{number}"} for number in range(3))]
    assert run(tmp_path, tasks)["slow"] == 1


def test_where_units_cost_money_nothing_is_started_twice(tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr(actors, "STRAGGLER_SECONDS", 0.1)
    tasks = [{"path": "slow", "first_sleeps": 3}, *({"path": f"unit{number}"} for number in range(3))]
    run(tmp_path, tasks, twice=False)
    assert set(begun(tmp_path).values()) == {1}


def test_errors_of_the_set_up_reach_the_user(ray_session):
    tasks = [{"path": "unit"}]
    with StageProgress("test", 1) as progress:
        with pytest.raises(ValueError, match="^there is no such model$"):
            run_actors(of_a_bad_model, {}, tasks, 1, progress)
        with pytest.raises(RuntimeError, match="3 workers died before they were ready"):
            run_actors(dies_at_once, {}, tasks, 1, progress)
