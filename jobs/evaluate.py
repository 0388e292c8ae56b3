"""Score a checkpoint with the exact judge.

python -m jobs.evaluate --checkpoint DIR --suite shapes --json FILE

Draws the held-out prompts of six categories, asks held-out questions, prints the scores and writes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from jobs._console import progress, told_plainly
from pipelines.publish import publish_json
from showo2.evaluate.suite import CLIP_KINDS, KINDS, Report, Suite, evaluate
from showo2.tiny.world import CATEGORIES


@dataclass(frozen=True, kw_only=True)
class Evaluate(Suite):
    """Score a checkpoint with the exact judge: six categories of pictures, four kinds of questions."""

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
        drawn = bar.add_task("pictures", total=suite.pictures * len(CATEGORIES))
        asked = bar.add_task("questions", total=suite.questions * len(KINDS))
        clips = bar.add_task("clips", total=suite.clips, visible=suite.clips > 0)
        animations = bar.add_task("animations", total=suite.animations, visible=suite.animations > 0)
        clips_asked = bar.add_task("questions about clips", total=suite.clip_questions * len(CLIP_KINDS),
                                   visible=suite.clip_questions > 0)
        stories = bar.add_task("stories", total=suite.stories, visible=suite.stories > 0)
        tell = [partial(bar.advance, task) for task in (drawn, asked, clips, animations, clips_asked, stories)]
        report = evaluate(pipeline, suite, *tell)
    publish_json(
        str(config.json.parent),
        config.json.name,
        {**report.scores, **report.details, "config": asdict(config)},
    )
    if config.save is not None:
        config.save.mkdir(parents=True, exist_ok=True)
        parts = (report.drawn, report.asked, report.clips, report.animations, report.clips_asked, report.stories)
        images = [item.image for part in parts for item in part]
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
