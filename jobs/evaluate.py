"""Score a checkpoint with the exact judge.

python -m jobs.evaluate --checkpoint DIR --suite shapes --json FILE

Draws the held-out prompts of six categories, asks held-out questions, prints the scores and writes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from jobs._console import progress, told_plainly
from pipelines.publish import publish_json
from showo2.evaluate.suite import Report, Suite, evaluate


@dataclass(frozen=True, kw_only=True)
class Evaluate(Suite):
    """Score a checkpoint with the exact judge: six categories of pictures, five kinds of questions."""

    json: Path
    """file that the scores go to"""
    checkpoint: str = "tiny:reference"
    """folder or URL of an exported model, Hub id, or tiny:reference"""
    suite: Literal["shapes"] = "shapes"
    """which suite"""
    save: Path | None = None
    """folder for all pictures, drawn and asked about, the last frames of clips, and stories' pictures side by side"""
    device: str | None = None
    """where the model runs (default: a GPU if there is one)"""


def run(config: Evaluate) -> Report:
    """Evaluate, and write the scores (and the pictures)."""
    # Imported late: --help answers at once.
    from showo2.generate import Showo2Pipeline

    pipeline = Showo2Pipeline.from_pretrained(config.checkpoint, device=config.device)
    suite = Suite(**{f.name: getattr(config, f.name) for f in fields(Suite)})
    with progress() as bar:
        tasks = {part: bar.add_task(part.replace("_", " "), total=total) for part, total in suite.totals.items() if total}
        report = evaluate(pipeline, suite, lambda part, count: bar.advance(tasks[part], count))
    publish_json(
        str(config.json.parent),
        config.json.name,
        {**report.scores, **report.details, "config": asdict(config)},
    )
    if config.save is not None:
        config.save.mkdir(parents=True, exist_ok=True)
        images = [item.image for items in report.parts.values() for item in items]
        for i, image in enumerate(images):
            image.save(config.save / f"{i:05d}.png")
    return report


def table(report: Report) -> Table:
    """The scores as one reads them."""
    shown = Table("", "", "right", title="suite shapes, held out")
    for part, scores in report.scores.items():
        if part != "manifest":
            for name, share in scores.items():
                shown.add_row(
                    part,
                    name,
                    f"{share:.1%}",
                    style="bold" if name == "score" else "",
                    end_section=name == "score",
                )
    return shown


def main() -> None:
    """The command line."""
    config = tyro.cli(Evaluate, description=__doc__)
    with told_plainly():
        report = run(config)
    Console().print(table(report))
    Console().print(f"written to {config.json}")


if __name__ == "__main__":
    main()
