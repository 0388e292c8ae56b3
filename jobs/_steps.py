"""A list of steps, run in order: what is done, what it takes, how long the rest will take. Run again, it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console


@dataclass(frozen=True)
class Step:
    """One step: `run` does it and answers with a line for people; `seconds` is what to expect on two cores."""

    name: str
    title: str
    seconds: float
    run: Callable[[], str]


def run_steps(steps: Sequence[Step], journal: Path, console: Console | None = None) -> None:
    """Run every step. Each is expected to do nothing where it is done already, so an interrupted list goes on.

    The journal keeps the seconds that each step took, over all runs until it was done, and its line.
    """
    console = console or Console()
    begin = time.monotonic()
    notes = read_journal(journal)
    spent = expected = 0.0
    for number, step in enumerate(steps, 1):
        pace = spent / expected if expected else 1.0
        left = pace * sum(s.seconds for s in steps[number - 1 :] if not notes.get(s.name, {}).get("done"))
        console.rule(f"[bold]{number}/{len(steps)} {step.name}[/] · {clock(time.monotonic() - begin)} so far, about "
                     f"{clock(left)} left", align="left")  # fmt: skip
        console.print(step.title, style="dim")
        note = notes.setdefault(step.name, {"seconds": 0.0, "done": False, "said": ""})
        started = time.monotonic()
        try:
            note["said"] = step.run()
        finally:
            seconds = time.monotonic() - started
            if not note["done"]:
                note["seconds"] += seconds
                spent, expected = spent + seconds, expected + step.seconds
            _write(journal, notes)
        note["done"] = True
        _write(journal, notes)
        console.print(f"[green]✓[/] {note['said']}  [dim]{clock(seconds)}[/]")


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """{step: {"seconds", "done", "said"}} in the order of the steps; empty before the first run."""
    return json.loads(path.read_text()) if path.exists() else {}


def clock(seconds: float) -> str:
    """Minutes and seconds: 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _write(path: Path, notes: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(notes, indent=1) + "\n")
    temporary.replace(path)
