"""What the shipped reference, which draws single pictures, learns from stories (section 4.4): `tiny-story`, by command.

A world of pictures, conversations and stories is curated and encoded, the recipe trains from the reference, and the judge
hears stories from held-out beginnings and looks at pictures and questions, before and after.

    python -m benchmarks.stories --json FILE [--out DIR]
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks._report import Aim, Report, Row
from jobs._ray import connect
from jobs.evaluate import Evaluate
from jobs.evaluate import run as evaluate
from jobs.train import Train, train
from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, encode
from showo2 import recipes
from showo2.tiny.sources import Options as World
from showo2.tiny.sources import write_sources

REFERENCE = "tiny:reference"
PARTS = {"story": "stories", "picture": "pictures", "question": "questions"}
TOLD = 90  # held-out beginnings, each three times from other noise


@dataclass(frozen=True)
class Options:
    """out: folder for everything; run again, it goes on. json: where the report goes. pictures, stories, seed: of the world.
    quick: a few of each and four steps, which show that everything runs."""

    out: Path = Path("build/benchmarks/stories")
    json: str = "build/benchmarks/stories.json"
    pictures: int = 6000
    stories: int = 4000
    seed: int = 0
    quick: bool = False


def make_data(options: Options) -> str:
    """The dataset folder: without the web's pictures, whose alt texts would have to be described anew first."""
    world, data = options.out / "world", str(options.out / "data")
    pictures, stories = (200, 40) if options.quick else (options.pictures, options.stories)
    write_sources(World(world, pictures, options.seed, stories=stories))
    connect()
    named = {"synthetic": "synthetic", "instruct": "instruct", "stories:omnicorpus": "stories"}
    curate(CurateConfig(source=tuple(f"{name}={world / folder}" for name, folder in named.items()), out=data))
    encode(EncodeConfig(data=data))
    return data


def scores(options: Options, name: str, checkpoint: str) -> dict[str, float]:
    """The judge's three scores of a checkpoint."""
    path = options.out / f"{name}.json"
    if not path.exists():
        suite = {"pictures": 1, "questions": 1, "points": 4} if options.quick else {}
        evaluate(Evaluate(json=path, checkpoint=checkpoint, seed=options.seed, stories=5 if options.quick else TOLD, **suite))
    found = json.loads(path.read_text())
    return {parts: found[part]["score"] for part, parts in PARTS.items()}


def run(options: Options) -> Report:
    """Make the data, train, judge."""
    data, recipe = make_data(options), replace(recipes.get("tiny-story"), seed=options.seed)
    if options.quick:
        recipe = replace(recipe, steps=4, warmup=1, log_every=1)
    before, start = scores(options, "before", REFERENCE), time.monotonic()
    if train(Train(recipe, (data,), str(options.out / "run"), REFERENCE)) != "finished":
        raise KeyboardInterrupt
    minutes = (time.monotonic() - start) / 60
    after = scores(options, "after", str(options.out / "run" / "export"))
    rows = [Row(f"{parts} that are right, {told}", found[parts], "") for told, found in (("before", before), ("after", after))
            for parts in found]  # fmt: skip
    return Report("stories", [*rows, Row("training", minutes, "min")], [Aim("stories that are right", after["stories"], ">=", 0.75)])


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
