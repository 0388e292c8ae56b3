"""Curate image-text tars: python -m jobs.curate --source web=DIR/web/*.tar --source synthetic=... --out DATA

Without --source, on a dataset that stands already: `--select NAME --rules FILE` makes a selection of stored scores,
`--score NAME` adds scores, `--why UID` tells the story of one row. `--dry-run` only says what a run would take.
`--check SOURCE`, alone, only says what is wrong with a source.
"""

import os
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from jobs import _check
from jobs._console import told_plainly
from jobs._ray import connect
from pipelines.curate import CurateConfig, Report, add_scores, curate
from pipelines.estimate import estimate
from pipelines.facts import Limits
from pipelines.groups import Dedup
from pipelines.rows import load_selection
from pipelines.rules import Rules, load_rules
from pipelines.run import RunFailed
from pipelines.select import check_name, named_selection
from pipelines.sources import InputError, Part, check_output, plan
from pipelines.why import why


@dataclass(frozen=True)
class Options:
    """What goes in, what is kept and where it goes."""

    out: str
    """The dataset's folder, local or s3://."""
    source: tuple[str, ...] = ()
    """NAME=PATH or NAME:PRESET=PATH, several times; PATH is a tar, a folder of tars or a pattern, local or s3://."""
    rules_file: Annotated[str | None, tyro.conf.arg(name="rules")] = None
    """JSON file of rules, {"min_side": 768, ...}; stands over those of the command line."""
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)
    score: tuple[str, ...] = ()
    """Scores to store: text, pixels, nsfw, similarity=MODEL, or NAME=MODEL:LABEL; several times."""
    dedup: Dedup = field(default_factory=Dedup)
    against: tuple[str, ...] = ()
    """NAME=PATH of evaluation sets: pictures that are near copies of theirs are dropped."""
    part: Part = field(default_factory=Part)
    select: str | None = None
    """Make this selection of the base selection's rows, by --rules, from stored facts and scores."""
    why: str | None = None
    """A row's uid, or SOURCE/KEY: tell where it went, and why."""
    dry_run: bool = False
    """Estimate time and money from one tar of each source, and write nothing."""
    price: float = 0.0
    """Of a worker's hour, for --dry-run."""
    workers: int | None = None
    """At most so many tasks at a time; by default as many as there are CPUs."""
    gpus_per_worker: float = 0
    """GPUs of an actor that holds a scoring model."""

    def config(self) -> CurateConfig:
        """The options of a curation."""
        shared = {name: getattr(self, name) for name in CurateConfig.__dataclass_fields__ if name != "rules"}
        return CurateConfig(**shared, rules=load_rules(self.rules_file, self.rules))


def tell(report: Report, out: str) -> None:
    """Print what was decided."""
    for damage in report.damages:
        print(f"damaged: {damage}")
    for source, counts in report.counts.items():
        print(f"{source}: {', '.join(f'{account} {rows:,}' for account, rows in counts.items())}")
    if report.pictures:
        told = ", ".join(f"{what} {count:,}" for what, count in report.pictures.items())
        print(f"pictures of kept documents: {told}")
    kept = report.total.get("kept", 0)
    print(f"kept {kept:,} of {report.rows:,} rows; dataset {report.hash}; see {out}/report.html")


def tell_selection(report: dict[str, Any]) -> None:
    """Print what a named selection kept."""
    counts = ", ".join(f"{account} {rows:,}" for account, rows in report["counts"].items())
    rows = sum(report["counts"].values())
    print(f"{report['name']}: {counts}; {report['rows']:,} of {rows:,} rows; selection {report['hash']}")


def run(options: Options) -> None:
    """Do what the options ask for."""
    config = options.config()
    if options.why is not None:
        print("\n".join(why(options.out, options.why)))
        return
    if options.select is not None:
        check_name(options.select)
        if config.source:
            raise InputError(
                f"--select {options.select} takes no --source: curate first, then select from its rows"
            )
    if options.select is not None or (options.score and not config.source):
        load_selection(options.out)  # mistakes are told before Ray starts
    else:
        plan(config.source, config.part)
    if options.dry_run:
        print("\n".join(estimate(config).lines(options.workers or os.cpu_count() or 1, options.price)))
        return
    check_output(options.out)
    connect()
    if config.source:
        tell(curate(config), options.out)
    else:
        add_scores(config)
    if options.select is not None:
        tell_selection(named_selection(options.out, options.select, config.rules, options.workers))


def main() -> None:
    """Entry point."""
    if "--check" in sys.argv[1:]:
        with told_plainly():
            raise SystemExit(_check.main(sys.argv[1:]))
    options = tyro.cli(Options, description=__doc__, config=(tyro.conf.UseAppendAction,))
    with told_plainly():
        try:
            run(options)
        except RunFailed as error:
            print(f"error: {error}; run the same command again to try only these", file=sys.stderr)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
