"""Running units on Ray Data: each is one task, and the first trouble of one harms no other."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.data import TaskPoolStrategy

from pipelines.progress import StageProgress

Task = dict[str, Any]
Result = dict[str, Any]


class RunFailed(RuntimeError):
    """Some units could not be done; all others are published, and a further run tries only these."""


def run_tasks(
    function: Callable[[Task], Result], tasks: list[Task], workers: int | None, progress: StageProgress
) -> list[Result]:
    """Call `function(task)` for each task, each in a Ray task, and return the results in order of completion.

    Tasks and results are plain JSON data. A task's I/O error is collected, and raised as RunFailed when all others
    are done. `workers`: at most so many at a time (None: as many as the cluster has CPUs; 0: one after the other
    in this process, without Ray).
    """
    if not tasks:
        return []
    if workers == 0:
        return collect(((task, attempt(function, task)) for task in tasks), tasks, progress)
    return collect(_on_ray_data(function, tasks, workers), tasks, progress)


def attempt(function: Callable[[Task], Result], task: Task) -> Result:
    """The function's result, or {"failed": why} after an I/O error."""
    try:
        return function(task)
    except (OSError, EOFError) as error:
        return {"failed": f"{task.get('path', '')}: {type(error).__name__}: {error}"}


def _on_ray_data(
    function: Callable[[Task], Result], tasks: list[Task], workers: int | None
) -> Iterator[tuple[Task, Result]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it would tell of that
    rows = [{"task": json.dumps(task)} for task in tasks]

    def call(row: dict[str, str]) -> dict[str, str]:
        return {**row, "result": json.dumps(attempt(function, json.loads(row["task"])))}

    # One block a unit, so that a unit is what a worker takes, loses and is given again.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    compute = TaskPoolStrategy(size=workers and min(workers, len(tasks)))
    for row in dataset.map(call, compute=compute).iter_rows():
        yield json.loads(row["task"]), json.loads(row["result"])


def collect(
    results: Iterable[tuple[Task, Result]], tasks: list[Task], progress: StageProgress
) -> list[Result]:
    """The results, counted as they come. Raises RunFailed at the end where some say "failed"."""
    progress.expect(task.get("path", "") for task in tasks)
    good = []
    failures = []
    for task, result in results:
        if "failed" in result:
            failures.append(result["failed"])
        else:
            good.append(result)
        progress.advance(units=1, rows=result.get("rows", 0), name=task.get("path", ""))
    if failures:
        listed = "; ".join(sorted(failures)[:5])
        raise RunFailed(f"{len(failures)} of {len(failures) + len(good)} units failed: {listed}")
    return good
