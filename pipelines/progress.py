"""How far a stage is: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


class StageProgress:
    """Counts units and rows of one stage.

    with StageProgress("facts", units=66) as progress: progress.advance(units=1, rows=10_000)
    """

    def __init__(self, stage: str, units: int, already: int = 0) -> None:
        """`units`: all of the stage; `already`: done by an earlier run."""
        self.stage, self.units, self.finished, self.rows = stage, units, already, 0
        self._started = self._told = time.monotonic()
        self._resumed = already
        self._bar = _bar() if sys.stderr.isatty() else None

    def __enter__(self) -> "StageProgress":  # noqa: PYI034
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=self.units, completed=self.finished, rate="")
        if self._resumed:
            self._say(f"{self.stage}: {self._resumed} of {self.units} units were done before")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.finished > self._resumed:
            self._say(self._line())

    @property
    def seconds(self) -> float:
        """Since the start of the stage."""
        return time.monotonic() - self._started

    def advance(self, units: int = 1, rows: int = 0) -> None:
        """Count finished work and show it."""
        self.finished += units
        self.rows += rows
        if self._bar is not None:
            rate = f"{self.rows / max(self.seconds, 1e-9):,.0f} rows/s"
            self._bar.update(self._task, completed=self.finished, rate=rate)
        elif time.monotonic() - self._told > LINE_EVERY_SECONDS:
            self._told = time.monotonic()
            self._say(self._line())

    def _line(self) -> str:
        rate = self.rows / max(self.seconds, 1e-9)
        left = self.units - self.finished
        eta = self.seconds / max(self.finished - self._resumed, 1) * left
        tail = f", {eta:.0f} s left" if left else f" in {self.seconds:.1f} s"
        return f"{self.stage}: {self.finished}/{self.units} units, {self.rows} rows, {rate:,.0f} rows/s{tail}"

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _bar() -> Progress:
    columns = ("{task.description}", "{task.completed}/{task.total} units", "{task.fields[rate]}")
    text = [TextColumn(column) for column in columns]
    return Progress(
        text[0],
        BarColumn(),
        *text[1:],
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
