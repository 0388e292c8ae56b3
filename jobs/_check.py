"""`python -m jobs.curate --check SOURCE`: what is wrong with data that somebody brings."""

from collections import Counter
from dataclasses import dataclass, field

import tyro

from pipelines.check import Findings, check_source
from pipelines.facts import Limits


@dataclass(frozen=True)
class Check:
    """Read a source as curation would, write nothing, and name the first bad rows."""

    check: str
    """A tar, a folder of tars or a pattern, local or s3://; NAME=PATH works too."""
    first: int = 20
    """Bad rows that are named; all are counted."""
    limits: Limits = field(default_factory=Limits)


def main(arguments: list[str]) -> int:
    """Print findings; 1 if there is anything wrong."""
    options = tyro.cli(Check, args=arguments, description=__doc__)
    findings = Findings(Counter(), Counter())
    for number, trouble in enumerate(check_source(options.check, options.limits, findings)):
        if number < options.first:
            print(trouble.describe())
    bad = findings.troubles.total()
    kinds = ", ".join(f"{rows:,} {kind}s" for kind, rows in sorted(findings.rows.items())) or "no rows"
    print(f"{kinds}; {bad:,} bad" + (f": {dict(findings.troubles.most_common())}" if bad else ": ready for jobs.curate"))
    return 1 if bad or not findings.rows else 0
