"""What a benchmark writes: numbers, the aims they are held to, and where they were measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import operator
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

_COMPARE = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}
_VERSIONS = ("torch", "transformers", "diffusers", "ray", "pyarrow", "numpy", "pillow")


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


def versions() -> dict[str, str]:
    """Python's version and those of the packages that move the numbers."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VERSIONS}}


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory in GiB, the GPU if there is one, and torch's threads."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def commit() -> str:
    """The commit that was measured, with `+` where the tree differs from it; `unknown` outside a repository."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
