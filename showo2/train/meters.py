"""Meters: what a run says about itself, one JSON line a logged step, and the same as TensorBoard scalars."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from showo2.store import Place, Where

METRICS = "metrics.jsonl"


class Meters:
    """Averages over the steps between two lines; only the first rank writes.

    A resumed run drops the lines after its checkpoint: the file tells one story, whatever was lost and redone.
    """

    def __init__(self, folder: Path, start: int, every: int, last: int):
        self.path, self.every, self.last = folder / METRICS, every, last
        _cut(self.path, start)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._steps, self._since = 0, time.monotonic()

    def add(self, step: int, latest: dict[str, float], summed: dict[str, float], means: dict[str, float]) -> None:
        """Record a finished step (counted from 1): values to report as they are, per second, and as a mean.

        A mean is over the steps that had such a value.
        """
        for name, value in (summed | means).items():
            self._sums[name] += value
            self._counts[name] += 1
        self._steps += 1
        if step % self.every and step != self.last:
            return
        seconds = time.monotonic() - self._since
        line = {"step": step, **latest}
        line |= {name: self._sums[name] / (seconds if name in summed else n) for name, n in self._counts.items()}
        line |= {"step_s": seconds / self._steps}
        self._write(line)
        self._sums.clear()
        self._counts.clear()
        self._steps, self._since = 0, time.monotonic()

    def event(self, step: int, **facts: Any) -> None:
        """A line of its own for something that happened: a skipped step, a resume."""
        self._file.write(json.dumps({"step": step, **facts}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Write out what is left."""
        self._file.close()
        self._board.close()

    def _write(self, line: dict[str, float]) -> None:
        self.event(int(line["step"]), **{name: value for name, value in line.items() if name != "step"})
        for name, value in line.items():
            if name != "step":
                self._board.add_scalar(name, value, line["step"])


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file that are whole; the last one may still be being written."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def last(path: Where, tail: int = 1 << 16) -> dict[str, Any] | None:
    """The last whole line that tells a loss, from the file's last `tail` bytes; None where there is none yet."""
    place = Place(path)
    size = place.size() or 0
    lines = (place.read(max(0, size - tail), size) or b"").split(b"\n")[:-1]
    for text in reversed(lines):
        if text.startswith(b"{") and b'"step_s"' in text:
            return json.loads(text)
    return None


def _cut(path: Path, step: int) -> None:
    kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(kept))
