"""What a benchmark writes: numbers, the aims they are held to, and where they were measured."""

from __future__ import annotations

import datetime
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs._machine import commit, machine, versions

_COMPARE = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True)
class Row:
    """One measured number, with its unit."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Aim:
    """What a number was asked to be: `value op aim`, say 0.55 <= 0.6."""

    name: str
    value: float
    op: str
    aim: float

    def __post_init__(self) -> None:
        if self.op not in _COMPARE:
            raise ValueError(f"aim {self.name!r}: op is {self.op!r}; known: {', '.join(_COMPARE)}")

    @property
    def holds(self) -> bool:
        """Whether the number is as asked; a missed aim stays in the report as missed."""
        return bool(_COMPARE[self.op](self.value, self.aim))


@dataclass(frozen=True)
class Report:
    """All of one benchmark, measured in one run on one machine."""

    name: str
    rows: Sequence[Row]
    aims: Sequence[Aim] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: name, commit, date, machine, versions, rows, aims."""
        return {
            "name": self.name,
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "rows": [vars(row) for row in self.rows],
            "aims": [{**vars(aim), "holds": aim.holds} for aim in self.aims],
        }

    def write(self, path: str | Path) -> None:
        """Print the report and write it as JSON, with its folder."""
        Console().print(self._table())
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def _table(self) -> Table:
        table = Table("", "value", "", title=f"benchmark {self.name}")
        for row in self.rows:
            table.add_row(row.name, f"{row.value:.5g}", row.unit)
        for aim in self.aims:
            verdict = "[green]holds[/]" if aim.holds else "[red]missed[/]"
            table.add_row(aim.name, f"{aim.value:.5g}", f"{aim.op} {aim.aim:g}: {verdict}")
        return table
