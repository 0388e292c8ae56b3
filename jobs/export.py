"""Make a `from_pretrained` folder of a checkpoint, also while its run goes on.

python -m jobs.export RUN --to FOLDER [--step N] [--raw]
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from jobs._console import told_plainly
from showo2.train.start import export_checkpoint


@dataclass(frozen=True)
class Export:
    """Which checkpoint, and where to."""

    run: tyro.conf.Positional[str]
    """the run's folder or URL"""
    to: str
    """the folder or URL to write to; --init, jobs.generate and jobs.evaluate take it"""
    step: int | None = None
    """whose checkpoint; by default the newest one's"""
    raw: bool = False
    """the weights as they are, not their average"""


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = tyro.cli(Export, args=arguments, description=__doc__)
    with told_plainly():
        step = export_checkpoint(config.run, config.to, config.step, not config.raw)
    print(f"{config.to}: step {step} of {config.run}")


if __name__ == "__main__":
    main()
