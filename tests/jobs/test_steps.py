"""A list of steps goes on where it was stopped, and adds up the time that each step took."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from jobs._steps import Step, clock, read_journal, run_steps


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_every_step_runs_in_order_and_says_what_it_did(tmp_path: Path) -> None:
    ran = []
    steps = [Step(name, "what it does", 1, lambda name=name: ran.append(name) or f"{name} done") for name in "abc"]
    console = quiet()
    run_steps(steps, tmp_path / "new" / "steps.json", console)
    assert ran == ["a", "b", "c"]
    journal = read_journal(tmp_path / "new" / "steps.json")
    assert [(name, note["done"], note["said"]) for name, note in journal.items()] == [
        (name, True, f"{name} done") for name in "abc"
    ]
    shown = console.file.getvalue()
    assert "1/3 a" in shown and "about 0:03 left" in shown and "c done" in shown


def test_a_stopped_list_goes_on_and_adds_up_the_time(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"

    def fail() -> str:
        time.sleep(0.1)
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"):
        run_steps([Step("a", "", 1, lambda: "a"), Step("b", "", 1, fail)], path, quiet())
    first = read_journal(path)
    assert first["a"]["done"] and not first["b"]["done"]

    def slow() -> str:
        time.sleep(0.1)
        return "b"

    run_steps([Step("a", "", 1, slow), Step("b", "", 1, slow)], path, quiet())
    second = read_journal(path)
    assert second["a"]["seconds"] == first["a"]["seconds"], "a step that was done keeps its time"
    assert second["b"]["seconds"] >= first["b"]["seconds"] + 0.1


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (187, "3:07"), (3600, "60:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text
