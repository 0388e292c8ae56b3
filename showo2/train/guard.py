"""Loss spikes: seen while training, mended by going back and leaving out what caused them.

PaLM (section 5.1): restart from about 100 steps before a spike and skip 200 to 500 batches.
"""

from __future__ import annotations

import json
from collections import deque
from statistics import fmean

from showo2.store import Place, Where
from showo2.train.checkpoint import MARKER, committed, step_of
from showo2.train.start import EXPORT

SKIPS = "skips.json"
# Losses that the mean is taken over, and how many in a row must lie above it.
WINDOW, PATIENCE = 100, 4


class SpikeWatch:
    """Tells when the last `PATIENCE` losses all exceed `factor` times the mean of the `WINDOW` before them."""

    def __init__(self, factor: float):
        self.factor = factor
        self._losses: deque[float] = deque(maxlen=WINDOW + PATIENCE)

    def add(self, loss: float) -> bool:
        """Whether a spike begins with these losses; it is told once, then the losses are collected anew."""
        self._losses.append(loss)
        if len(self._losses) < WINDOW + PATIENCE:
            return False
        losses = list(self._losses)
        spike = min(losses[WINDOW:]) > self.factor * fmean(losses[:WINDOW])
        if spike:
            self.forget()
        return spike

    def forget(self) -> None:
        """Collect losses anew: what comes next is not to be held against what was."""
        self._losses.clear()


def rewind(run: Where, to: int, skip: int) -> int:
    """Make `run` go on from its newest checkpoint at or before step `to`, leaving out the next `skip` batches.

    Returns that checkpoint's step. Later checkpoints and the export are deleted; the learning rate follows the step, as
    ever. Raises ValueError where there is no such checkpoint, or nothing to do.
    """
    if skip < 1:
        raise ValueError(f"skip is {skip}; leave out 1 batch or more: without that the same spike comes again")
    run = Place(run)
    folders = committed(run / "checkpoints")
    steps = [step_of(folder.name) for folder in folders]
    kept = next((step for step in steps if step <= to), None)
    if kept is None:
        raise ValueError(f"{run} has no checkpoint at or before step {to}; it has {sorted(steps)}")
    # First what to skip, then the later checkpoints: cut off between the two, the same command ends it.
    (run / SKIPS).write(json.dumps({**read_skips(run), str(kept): skip}).encode())
    (run / EXPORT).remove()
    for folder, step in zip(folders, steps, strict=True):
        if step > kept:
            (folder / MARKER).remove()
            folder.remove()
    return kept


def read_skips(run: Where) -> dict[str, int]:
    """Batches that are left out where the run goes on from a checkpoint, by its step."""
    return json.loads((Place(run) / SKIPS).read() or b"{}")
