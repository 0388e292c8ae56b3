"""Units that need a set-up, on Ray actors: a loop over plain actors, each with one unit at a time.

Ray Data runs the units that need none (`run.py`). It does not replace an actor that has grown, nor start a unit a second
time because its node is slow, and both matter to models that work for days.
"""

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from pipelines.progress import StageProgress
from pipelines.run import Result, Task, attempt, collect

RECYCLE_AFTER = 200  # units of one actor: what leaks, leaks only so far
ATTEMPTS = 3  # of a unit whose actors die
# A unit that has run for longer than so many times the median, and so many seconds, is started a second time.
STRAGGLER, STRAGGLER_SECONDS = 2.0, 30.0
_LOOK_SECONDS = 1.0

Make = Callable[..., Callable[[Task], Result]]


def run_actors(
    make: Make,
    arguments: dict[str, Any],
    tasks: list[Task],
    workers: int | None,
    progress: StageProgress,
    num_gpus: float = 0,
    twice: bool = True,
) -> list[Result]:
    """As `run_tasks`, with `workers` actors of which each calls `make(**arguments)` once for its function.

    An actor that dies is replaced, and its unit tried again, up to `ATTEMPTS` times. `twice`: once no unit waits, the
    longest running is started a second time on an actor that is free, and the first result counts; units publish the
    same bytes whoever does them. Raises what `make` raises, and RunFailed as `run_tasks` does.
    """
    if not tasks:
        return []
    if workers == 0:
        function = make(**arguments)
        return collect(((task, attempt(function, task)) for task in tasks), tasks, progress)
    pool = _Pool(make, arguments, tasks, workers, progress, num_gpus, twice)
    try:
        return collect(pool.results(), tasks, progress)
    finally:
        pool.close()


class _Worker:
    """An actor: loads its function, then does one unit after the other."""

    def prepare(self, make: Make, arguments: dict[str, Any]) -> None:
        self.function = make(**arguments)

    def do(self, task: Task) -> Result:
        return attempt(self.function, task)


@dataclass(frozen=True)
class _Call:
    """What an actor is busy with: the task of that number, or (None) its set-up."""

    worker: ActorHandle
    number: int | None
    since: float


class _Pool:
    """The actors of one stage, and who does what."""

    def __init__(
        self,
        make: Make,
        arguments: dict[str, Any],
        tasks: list[Task],
        workers: int | None,
        progress: StageProgress,
        num_gpus: float,
        twice: bool,
    ) -> None:
        self.make, self.tasks, self.workers = make, tasks, workers
        self.arguments = ray.put(arguments)  # once for all actors, however large
        self.progress, self.num_gpus, self.twice = progress, num_gpus, twice
        self.waiting = deque(range(len(tasks)))
        self.unfinished = set(range(len(tasks)))
        self.calls: dict[ray.ObjectRef, _Call] = {}
        self.idle: list[ActorHandle] = []
        self.done_by: Counter[ActorHandle] = Counter()
        self.deaths: Counter[int | None] = Counter()
        self.seconds: list[float] = []

    def results(self) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, in order of completion."""
        while self.unfinished:
            self._hire()
            self._assign()
            ready, _ = ray.wait(list(self.calls), num_returns=1, timeout=_LOOK_SECONDS)
            for ref in ready:
                yield from self._finish(ref)

    def close(self) -> None:
        """End all actors; one may still do what another has done."""
        for worker in [*self.idle, *(call.worker for call in self.calls.values())]:
            ray.kill(worker)

    def _hire(self) -> None:
        """Start actors for the units that are left; with `workers` None, as many as the cluster has CPUs by now."""
        limit = self.workers or max(1, int(ray.cluster_resources()["CPU"]))
        for _ in range(min(limit, len(self.unfinished)) - len(self.idle) - len(self.calls)):
            worker = ray.remote(num_cpus=1, num_gpus=self.num_gpus)(_Worker).remote()
            self.calls[worker.prepare.remote(self.make, self.arguments)] = _Call(
                worker, None, time.monotonic()
            )

    def _assign(self) -> None:
        while self.idle and (number := self._next()) is not None:
            worker = self.idle.pop()
            self.progress.begin(self.tasks[number].get("path", ""))
            self.calls[worker.do.remote(self.tasks[number])] = _Call(worker, number, time.monotonic())

    def _next(self) -> int | None:
        """The unit that a free actor should do: the next one, or the one that has been running for too long."""
        if self.waiting:
            return self.waiting.popleft()
        if not self.twice or not self.seconds:
            return None
        runs = Counter(call.number for call in self.calls.values())
        alone = [call for call in self.calls.values() if call.number is not None and runs[call.number] == 1]
        slow = max(STRAGGLER_SECONDS, STRAGGLER * statistics.median(self.seconds))
        longest = min(alone, key=lambda call: call.since, default=None)
        return longest.number if longest and time.monotonic() - longest.since > slow else None

    def _finish(self, ref: ray.ObjectRef) -> Iterator[tuple[Task, Result]]:
        call = self.calls.pop(ref)
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            yield from self._died(call.number, error)
            return
        self._release(call)
        if call.number in self.unfinished:
            self.seconds.append(time.monotonic() - call.since)
            self.unfinished.remove(call.number)
            yield self.tasks[call.number], result

    def _release(self, call: _Call) -> None:
        """The actor is free, or has done enough and makes room for a new one."""
        self.deaths[None] = 0
        self.done_by[call.worker] += call.number is not None
        if self.done_by[call.worker] < RECYCLE_AFTER:
            self.idle.append(call.worker)
        else:
            ray.kill(call.worker)

    def _died(self, number: int | None, error: RayError) -> Iterator[tuple[Task, Result]]:
        """Try the unit again, or give it up. Actors that die in their set-up, one after the other while no other works,
        end the stage."""
        self.deaths[number] += 1
        if number is None:
            working = any(call.number is not None for call in self.calls.values())
            if self.deaths[None] >= ATTEMPTS and not working:
                raise RuntimeError(
                    f"{self.deaths[None]} workers died before they were ready: {error}"
                ) from error
        elif number in self.unfinished and all(call.number != number for call in self.calls.values()):
            if self.deaths[number] < ATTEMPTS:
                self.waiting.append(number)
            else:
                self.unfinished.remove(number)
                path = self.tasks[number].get("path", "")
                yield (
                    self.tasks[number],
                    {"failed": f"{path}: its worker died {self.deaths[number]} times: {error}"},
                )
