"""Goodput: the share of a run's wall time that went into steps which count, and where the rest went."""

from __future__ import annotations

import json
import time
from pathlib import Path

FILE = "goodput.json"
# down: between two attempts; start: until the first step; data, save: waiting for a batch, for a checkpoint; redo:
# steps made a second time after a restart; skipped: steps that were not finite.
CAUSES = ("down", "start", "data", "save", "redo", "skipped")


class Goodput:
    """Seconds by cause over all attempts of a run, kept in its folder; one rank has one.

    furthest: the step that any attempt reached.
    """

    def __init__(self, folder: Path):
        self._path = folder / FILE
        self._begun = now = time.time()
        told = json.loads(self._path.read_text()) if self._path.is_file() else {}
        self.first: float = told.get("first", now)
        self.furthest: int = told.get("furthest", 0)
        self.lost: dict[str, float] = {cause: told.get("lost", {}).get(cause, 0.0) for cause in CAUSES}
        self.lost["down"] += now - told.get("last", now)

    def started(self) -> None:
        """The first step of this attempt begins."""
        self.lost["start"] += time.time() - self._begun

    def step(self, number: int, seconds: float, finite: bool) -> None:
        """Count a step that took `seconds`: as lost where it was made before, or was skipped."""
        if number <= self.furthest:
            self.lost["redo"] += seconds
        elif not finite:
            self.lost["skipped"] += seconds
        self.furthest = max(self.furthest, number)

    def write(self) -> dict[str, float]:
        """Keep what is known; returns the goodput so far (0 to 1) and the lost seconds by cause, for the meters."""
        last = time.time()
        temporary = self._path.with_suffix(".tmp")
        facts = {"first": self.first, "last": last, "furthest": self.furthest, "lost": self.lost}
        temporary.write_text(json.dumps(facts))
        temporary.rename(self._path)
        share = 1 - sum(self.lost.values()) / max(last - self.first, 1e-9)
        return {"goodput": share, **{f"lost_{cause}_s": seconds for cause, seconds in self.lost.items() if seconds}}
