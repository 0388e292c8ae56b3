"""Go back before a loss spike and leave out the batches that made it.

python -m jobs.rewind RUN --to STEP --skip BATCHES; then the run's own command goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from jobs._console import told_plainly
from showo2.train.guard import rewind


@dataclass(frozen=True)
class Rewind:
    """Which run, how far back, and how much is left out."""

    run: tyro.conf.Positional[str]
    """the run's folder or URL, of a run that is not running"""
    to: int
    """a step before the spike; the newest checkpoint up to there is taken"""
    skip: int = 200
    """batches that are left out from there on"""


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = tyro.cli(Rewind, args=arguments, description=__doc__)
    with told_plainly():
        step = rewind(config.run, config.to, config.skip)
    print(f"{config.run} goes on from step {step} and leaves out {config.skip} batches")


if __name__ == "__main__":
    main()
