"""Curate image-text tars: python -m jobs.curate --source web=DIR/web/*.tar --source synthetic=... --out DATA

With --check SOURCE instead, only say what is wrong with a source.
"""

import sys

import tyro

from jobs import _check
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


def main() -> None:
    """Entry point."""
    if "--check" in sys.argv[1:]:
        with told_plainly():
            raise SystemExit(_check.main(sys.argv[1:]))
    config = tyro.cli(CurateConfig, description=__doc__, config=(tyro.conf.UseAppendAction,))
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
