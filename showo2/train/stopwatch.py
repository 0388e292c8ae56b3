"""How long a rank itself computes, collectives left out: what tells a slow rank from those that wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn


class Stopwatch:
    """Seconds in the forward passes of `units`, whose sharding hooks lie outside of what is timed."""

    def __init__(self, units: Sequence[nn.Module], device: torch.device):
        self._events = device.type == "cuda"
        self._pairs: list[tuple[Any, Any]] = []
        self._steps = 0
        for unit in units:
            unit.forward = self._timed(unit.forward)

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = self._now()
            out = forward(*args, **kwargs)
            self._pairs.append((begin, self._now()))
            return out

        return run

    def _now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def step(self) -> None:
        """A step is done."""
        self._steps += 1

    def read(self) -> float:
        """Seconds a step since the last reading; waits for the GPU."""
        pairs, self._pairs = self._pairs, []
        steps, self._steps = max(1, self._steps), 0
        if not self._events:
            return sum(end - begin for begin, end in pairs) / steps
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000 / steps


def pace(seconds: Sequence[float]) -> dict[str, float]:
    """For the meters: which rank computed longest, for how long, and the median of all."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return {"slowest_rank": slowest, "compute_s_slowest": seconds[slowest], "compute_s_median": median(seconds)}
