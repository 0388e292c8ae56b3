"""What every job shows: a progress bar, and a user's mistake in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Rate(ProgressColumn):
    """Units a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def progress() -> Progress:
    """A bar with count, rate and time remaining."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())


@contextmanager
def told_plainly() -> Iterator[None]:
    """Exit with 2 after a user's mistake and with 130 after Ctrl-C, with one line instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
