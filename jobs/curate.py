"""Curate image-text tars: python -m jobs.curate --source web=DIR/web/*.tar --source synthetic=... --out DATA"""

import sys

import tyro

from jobs._console import told_plainly
from jobs._ray import connect
from pipelines.curate import CurateConfig, Report, curate
from pipelines.run import RunFailed
from pipelines.sources import check_output, plan


def tell(report: Report, out: str) -> None:
    """Print what was decided."""
    for damage in report.damages:
        print(f"damaged: {damage}")
    for source, counts in report.counts.items():
        print(f"{source}: {', '.join(f'{account} {rows:,}' for account, rows in counts.items())}")
    kept = report.total.get("kept", 0)
    print(f"kept {kept:,} of {report.rows:,} rows; dataset {report.hash}; see {out}/report.html")


def _gather_sources(arguments: list[str]) -> list[str]:
    """One --source with all values, wherever it was repeated: both `--source A B` and `--source A --source B`."""
    values: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in arguments:
        if argument == "--source" or argument.startswith("--"):
            taking = argument == "--source"
            if not taking:
                is_joined = argument.startswith("--source=")
                (values if is_joined else rest).append(
                    argument.removeprefix("--source=") if is_joined else argument
                )
        else:
            (values if taking else rest).append(argument)
    return [*rest, "--source", *values] if values else rest


def main() -> None:
    """Entry point."""
    config = tyro.cli(CurateConfig, description=__doc__, args=_gather_sources(sys.argv[1:]))
    with told_plainly():
        check_output(config.out)
        plan(config.source)  # mistakes are told before Ray starts
        connect()
        try:
            tell(curate(config), config.out)
        except RunFailed as error:
            print(f"error: {error}; run the same command again to try only these", file=sys.stderr)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
