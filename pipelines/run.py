"""Running units on Ray Data: each is one task, and the first trouble of one harms no other."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipelines.progress import StageProgress

Task = dict[str, Any]


class RunFailed(RuntimeError):
    """Some units could not be done; all others are published, and a further run tries only these."""


class _PerUnit:
    """Turns the rows of Ray Data into calls of a unit's function, and its I/O errors into results."""

    def __init__(
        self, make: Callable[..., Callable[[Task], dict[str, Any]]], arguments: dict[str, Any]
    ) -> None:
        self.function = make(**arguments)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        task = json.loads(row["task"])
        try:
            result = self.function(task)
        except (OSError, EOFError) as error:
            result = {"failed": f"{task.get('path', '')}: {type(error).__name__}: {error}"}
        return {"result": json.dumps(result), "unit": task.get("path", "")}


class _Function:
    """`_PerUnit` around a plain function, for tasks that need no set-up."""

    def __init__(self, function: Callable[[Task], dict[str, Any]]) -> None:
        self.call = _PerUnit(lambda: function, {})

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        return self.call(row)


def run_tasks(
    function: Callable[[Task], dict[str, Any]],
    tasks: list[Task],
    workers: int | None,
    progress: StageProgress,
) -> list[dict[str, Any]]:
    """Call `function(task)` for each task, each in a Ray task, and return the results in order of completion.

    Tasks and results are plain JSON data. A task's I/O error is collected, and raised as RunFailed when all others
    are done. `workers`: at most so many at a time (None: as many as the cluster has CPUs; 0: one after the other
    in this process, without Ray).
    """
    if not tasks:
        return []
    if workers == 0:
        return _collect(_here(_Function(function), tasks), tasks, progress)
    # Plain functions cross to the workers by name, so only importable ones will do.
    call = _Function(function).__call__
    dataset = _dataset(tasks).map(call, compute=TaskPoolStrategy(size=workers))
    return _collect(dataset.iter_rows(), tasks, progress)


def run_actors(
    make: Callable[..., Callable[[Task], dict[str, Any]]],
    arguments: dict[str, Any],
    tasks: list[Task],
    workers: int | None,
    progress: StageProgress,
    num_gpus: float = 0,
) -> list[dict[str, Any]]:
    """As `run_tasks`, with `workers` actors of which each calls `make(**arguments)` once for its function."""
    if not tasks:
        return []
    if workers is None:
        workers = max(1, int(ray.cluster_resources()["CPU"]))
    if workers == 0:
        return _collect(_here(_PerUnit(make, arguments), tasks), tasks, progress)
    dataset = _dataset(tasks).map(
        _PerUnit,
        fn_constructor_args=(make, arguments),
        compute=ActorPoolStrategy(size=min(workers, len(tasks))),
        num_cpus=1,
        num_gpus=num_gpus,
    )
    return _collect(dataset.iter_rows(), tasks, progress)


def _here(call: Callable[[dict[str, str]], dict[str, str]], tasks: list[Task]) -> Iterator[dict[str, str]]:
    return (call({"task": json.dumps(task)}) for task in tasks)


def _dataset(tasks: list[Task]) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it would tell of that
    rows = [{"task": json.dumps(task)} for task in tasks]
    # One block a unit, so that a unit is what a worker takes, loses and is given again.
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _collect(
    rows: Iterable[dict[str, str]], tasks: list[Task], progress: StageProgress
) -> list[dict[str, Any]]:
    progress.expect(task.get("path", "") for task in tasks)
    results = []
    failures = []
    for encoded in rows:
        row = json.loads(encoded["result"])
        if "failed" in row:
            failures.append(row["failed"])
        else:
            results.append(row)
        progress.advance(units=1, rows=row.get("rows", 0), name=encoded["unit"])
    if failures:
        listed = "; ".join(sorted(failures)[:5])
        raise RunFailed(f"{len(failures)} of {len(failures) + len(results)} units failed: {listed}")
    return results
