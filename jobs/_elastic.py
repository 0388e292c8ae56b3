"""What Ray Train leaves open where workers come and go: a checkpoint before they do, and a fresh look at what is left.

Ray stops all workers to go on with another number of them. Where nodes joined, it does so between any two steps, and what
was trained since the last checkpoint would be trained again. Where one is lost, it plans with a view of the cluster that
is up to 20 s old, and then waits a minute for workers that cannot start.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.state import ResizingState

from showo2.store import Place
from showo2.train.checkpoint import newest_step

LONGEST_SAVE_S = 600.0
"""A checkpoint that takes longer does not hold Ray back any further."""
LONGEST_FAREWELL_S = 30.0
"""What a node that was to be taken away may stay beyond the lost worker that told of it."""

LEAST_LEFT_S = 1.0
"""No checkpoint is begun with less time than this until a node's announced end."""

_asked = threading.Event()


class Elastic(ControllerCallback, WorkerGroupCallback):
    """Held by Ray Train's controller, for the run in the folder or at the URL `out`."""

    def __init__(self, out: str):
        self.checkpoints = Place(out) / "checkpoints"
        self.group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember the workers of now."""
        self.group = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Save before all workers are stopped for another number of them."""
        if not isinstance(current_state, ResizingState):
            return
        try:
            ray.get(self.group.execute_single_async(0, save_on_worker, self.checkpoints), timeout=LONGEST_SAVE_S)
        except (ray.exceptions.RayError, ValueError) as error:
            warnings.warn(f"no checkpoint before the number of workers changes: {error}", stacklevel=1)

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Let the nodes go whose end was announced, and have Ray count those that are left."""
        end = time.monotonic() + LONGEST_FAREWELL_S
        while ray._private.state.state.get_draining_nodes() and time.monotonic() < end:
            time.sleep(0.5)
        counted = get_or_create_autoscaling_coordinator().get_reserved_resources.remote("showo2", recompute=True)
        try:
            ray.get(counted, timeout=LONGEST_FAREWELL_S)
        except ray.exceptions.RayError as error:
            warnings.warn(f"the cluster could not be counted anew after a failure: {error}", stacklevel=1)


def save_on_worker(checkpoints: Place) -> None:
    """`save` beside the thread that trains in this worker of Ray."""
    save(checkpoints, get_train_context().execution_context.training_thread_runner.is_running)


def save(checkpoints: Place, training: Callable[[], bool]) -> None:
    """Ask for a checkpoint, and wait until it is committed, or nobody trains any more."""
    before = newest_step(checkpoints)
    _asked.set()
    while training() and newest_step(checkpoints) == before:
        time.sleep(0.5)


def requests(context: Any) -> Callable[[], bool]:
    """Whether a checkpoint has just been asked for, by `save` or by a notice that a worker's node will be taken away.

    Of a notice it says so at once, and again whenever half of the time that was left has passed: where a checkpoint takes d
    seconds, the last that is there in time leaves less than 2 d to be trained again. context: a worker's
    `preemption_context`, where Ray puts its notices. `ray.train.get_preemption_info`, which asks the same, is a barrier of
    all workers, too slow for every step.
    """
    left = dict[int | None, float]()  # of each announced end: the seconds until it when a checkpoint was last asked for

    def ask() -> bool:
        notice = context.preemption_info
        if notice is not None:
            end = notice.deadline_ms
            remaining = 0.0 if end is None else end / 1000 - time.time()
            if end not in left or LEAST_LEFT_S < remaining <= left[end] / 2:
                left[end] = remaining
                return True
        asked = _asked.is_set()
        _asked.clear()
        return asked

    return ask
