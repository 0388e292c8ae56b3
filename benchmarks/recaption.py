"""What better captions are worth: the same tiny model trained on alt texts, and on recaptioned pairs.

Two runs of the demo's own steps from one world, equal but for the captions; the distilled semantic layers, which see no
text, are shared. The judge scores both on held-out prompts and questions. At full size this trains for long.

    python -m benchmarks.recaption --json FILE
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks._report import Aim, Report, Row
from jobs import demo as steps
from jobs._demo_checks import caption_quality
from jobs._demo_report import STAGES
from jobs._ray import connect
from jobs.demo import Demo
from pipelines.recaption import RecaptionConfig, recaption


@dataclass(frozen=True)
class Options:
    """json: where the report goes. pictures, seed: of the world. steps: of the last stage (by default the recipe's).
    folder: for both runs; by default a temporary one. quick: a few steps of training, which show that everything runs."""

    json: str = "build/benchmarks/recaption.json"
    pictures: int = 4000
    seed: int = 0
    steps: int | None = None
    folder: str | None = None
    quick: bool = False


def prepare(demo: Demo, captions: bool) -> dict[str, float]:
    """Curate, caption or not, and encode; the shares of right captions before and after."""
    steps.curate_world(demo)
    data = str(demo.out / "data")
    if captions:
        steps.recaption_world(demo)
    else:
        recaption(RecaptionConfig(data=data, skip_sources=("web", "synthetic", "instruct")))
    quality = caption_quality(demo.out / "world", data, demo.out / "captions")
    steps.encode_world(demo)
    return quality


def train(demo: Demo, distilled: Path | None) -> None:
    """All stages; the first is taken from `distilled` where it is given."""
    names = list(STAGES)
    if distilled is not None:
        shutil.copytree(distilled, demo.out / "runs" / names[0], dirs_exist_ok=True)
        names = names[1:]
    for name in names:
        print(f"{demo.out.name}, {name}: {steps.stage(demo, name)}")


def judged(demo: Demo) -> dict[str, float]:
    """The judge's scores of the last stage: {"picture", "question"}."""
    print(f"{demo.out.name}: {steps.score(demo)}")
    scores = json.loads((demo.out / "scores.json").read_text())
    return {part: scores[part]["score"] for part in ("picture", "question")}


def run(options: Options) -> Report:
    """Both arms, one after the other."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        alt = Demo(folder / "alt", options.pictures, options.steps, options.quick, options.seed)
        new = replace(alt, out=folder / "recaptioned")
        for demo in (alt, new):
            demo.out.mkdir(parents=True, exist_ok=True)
            steps.make_world(demo)  # forks, so it comes before Ray's threads
        connect()
        before = prepare(alt, captions=False)
        after = prepare(new, captions=True)
        train(alt, None)
        train(new, alt.out / "runs" / next(iter(STAGES)))
        scores = {demo.out.name: judged(demo) for demo in (alt, new)}
    rows = [Row("captions that are right: alt texts", before["after"], ""),
            Row("captions that are right: recaptioned", after["after"], "")]  # fmt: skip
    for name, score in scores.items():
        rows += [
            Row(f"{part}s that are right: trained on {name}", value, "") for part, value in score.items()
        ]
    gain = scores["recaptioned"]["picture"] - scores["alt"]["picture"]
    aims = [Aim("captions that are right", after["after"], ">=", 0.95),
            Aim("pictures that are right: recaptioned less alt texts", gain, ">", 0.0)]  # fmt: skip
    return Report("recaption", rows, aims)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
