"""How far a stage is: a bar on a terminal, a line now and then in a log."""

import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0
STILL_RUNNING = 4  # units that are named


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
        self._waiting: set[str] = set()
        self._begun: dict[str, float] = {}
        self._ended = threading.Event()

    def __enter__(self) -> "StageProgress":  # noqa: PYI034
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=self.units, completed=self.finished, rate="")
        if self._resumed:
            self._say(f"{self.stage}: {self._resumed} of {self.units} units were done before")
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.finished > self._resumed:
            self._say(self._line())

    @property
    def seconds(self) -> float:
        """Since the start of the stage."""
        return time.monotonic() - self._started

    def expect(self, names: Iterable[str]) -> None:
        """The units to come, by name."""
        self._waiting.update(names)

    def begin(self, name: str) -> None:
        """Unit `name` starts; the time of its first start counts."""
        self._begun.setdefault(name, time.monotonic())

    def still_running(self) -> list[str]:
        """The units that have run for longest, with their seconds; where starts are not told, the last few by name.

        A job that seems to hang says what it waits for.
        """
        if self._begun:
            now = time.monotonic()
            oldest = sorted(dict(self._begun).items(), key=lambda unit: unit[1])
            return [f"{name} ({now - since:.0f} s)" for name, since in oldest[:STILL_RUNNING]]
        return sorted(self._waiting) if len(self._waiting) <= STILL_RUNNING else []

    def advance(self, units: int = 1, rows: int = 0, name: str = "") -> None:
        """Count finished work, of the unit `name`, and show it."""
        self.finished += units
        self.rows += rows
        self._waiting.discard(name)
        self._begun.pop(name, None)
        if self._bar is not None:
            rate = f"{self.rows / max(self.seconds, 1e-9):,.0f} rows/s"
            self._bar.update(self._task, completed=self.finished, rate=rate)
        elif time.monotonic() - self._told > LINE_EVERY_SECONDS:
            self._told = time.monotonic()
            self._say(self._line())

    def _watch(self) -> None:
        """Speak up when nothing has been said for long: `advance` is not called while the last units run."""
        while not self._ended.wait(LINE_EVERY_SECONDS):
            if self.still_running() and time.monotonic() - self._told > LINE_EVERY_SECONDS:
                self._told = time.monotonic()
                names = ", ".join(self.still_running())
                self._say(f"{self.stage}: still running after {self.seconds:.0f} s: {names}")

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
