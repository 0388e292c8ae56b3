"""A step that never ends: every rank writes where it stands, and ends, so that the run can be started again."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

STACKS = "stacks"


class Watchdog:
    """Ends this process `limit` seconds after the last `beat`, with the stacks of its threads in `folder`.

    A rank that hangs makes every other wait in a collective, so each writes its own: `rank_N.txt`. The clock is a
    thread of C, which runs also where Python's lock is held. What the attempt before left is printed, then replaced.
    """

    def __init__(self, folder: Path, rank: int, limit: float):
        self.limit = limit
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{rank}.txt"
        if path.exists() and (stacks := path.read_text()):
            print(f"rank {rank} hung; where it stood:\n{stacks}", file=sys.stderr)
        self._file = path.open("w")

    def beat(self) -> None:
        """Start the clock anew."""
        faulthandler.dump_traceback_later(self.limit, file=self._file, exit=True)

    def close(self) -> None:
        """Stop the clock."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
