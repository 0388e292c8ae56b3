"""One GPU's memory in a large run, counted while a real step of it runs on no real numbers, on a CPU.

    python -m benchmarks.dry_run --recipe 7b-stage2c --gpus 128 --json FILE
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import tyro

from benchmarks._report import Aim, Report, Row
from showo2 import recipes
from showo2.train.dry_run import dry_run


@dataclass(frozen=True)
class Options:
    """json: where to write the report; recipe: its name; gpus: how many take part, by 8 a node."""

    json: str = "build/benchmarks/dry_run.json"
    recipe: str = "7b-stage2c"
    gpus: int = 128


def main(options: Options) -> None:
    """Run the step, and say what one GPU holds."""
    recipe = recipes.get(options.recipe)
    begin = time.monotonic()
    found = dry_run(recipe, recipes.model_config(recipe), options.gpus)
    seconds = time.monotonic() - begin
    held = {name: value / 1e9 for name, value in vars(found).items() if name not in ("rows", "context")}
    rows = [Row(f"{options.recipe} on {options.gpus} GPUs, {name}", value, "GB a GPU") for name, value in held.items()]
    rows += [Row("rows of a micro-batch", found.rows, ""), Row("tokens of a row", found.context, ""),
             Row("time of the dry run", seconds, "s")]
    aims = [Aim("peak, GB a GPU", held["peak"], "<", 80), Aim("time of the dry run, s", seconds, "<=", 300)]
    Report("dry_run", rows, aims).write(options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
