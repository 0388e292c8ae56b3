"""Describe every selected picture with a vision-language model: python -m jobs.recaption --data DATA"""

import sys

import tyro

from jobs._console import told_plainly
from jobs._ray import connect
from pipelines.recaption import RecaptionConfig, recaption
from pipelines.rows import load_selection
from pipelines.run import RunFailed


def main() -> None:
    """Entry point."""
    config = tyro.cli(RecaptionConfig, description=__doc__)
    with told_plainly():
        load_selection(config.data)  # mistakes are told before Ray starts
        connect()
        try:
            report = recaption(config)
        except RunFailed as error:
            print(f"error: {error}; run the same command again to try only these", file=sys.stderr)
            raise SystemExit(1) from None
        counts = ", ".join(f"{reason} {rows:,}" for reason, rows in report.counts.items())
        print(
            f"captions: {counts}; {report.tokens:,} tokens in {report.seconds:.0f} s; dataset {report.hash}"
        )


if __name__ == "__main__":
    main()
