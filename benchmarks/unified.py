"""What a model that draws single pictures learns when clips and stories come in (section 4.4): `tiny-unified`, by command.

A world of pictures, conversations, clips, conversations about clips, and stories is curated and encoded, the recipe trains
from --init (or from what `tiny-distill` to `tiny-stage2` make of that world), and the judge looks at clips of held-out motions
from nothing and from a first picture, asks about clips, hears stories from held-out beginnings, and looks at pictures and
questions, before and after. What is judged after is stored in half precision in DIR/shipped, as `tiny:reference` is in the package.

    python -m benchmarks.unified [--init EXPORT_OF_TINY_STAGE2] --json FILE [--out DIR]

What has learned most of it before, such as tiny:reference, needs fewer --steps.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks._report import Aim, Report, Row
from jobs._ray import connect
from jobs.evaluate import Evaluate
from jobs.evaluate import run as evaluate
from jobs.train import Train, train, train_through
from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, encode
from showo2 import recipes
from showo2.tiny.parts.common import halve
from showo2.tiny.sources import Options as World
from showo2.tiny.sources import write_sources
from showo2.train.recipe import Recipe

PARTS = {"clip": "clips", "animation": "clips from a picture", "clip_question": "answers about clips", "story": "stories",
         "picture": "pictures", "question": "answers"}  # fmt: skip
ASKED = {"clips": 96, "animations": 96, "clip_questions": 48, "stories": 90}
QUICK = {"pictures": 1, "questions": 1, "points": 4, "clips": 4, "animations": 4, "clip_questions": 1, "stories": 5}


@dataclass(frozen=True)
class Options:
    """init: what a trained tiny-stage2 was exported to; without it, one is trained first. steps: of tiny-unified, by default the
    recipe's. out: folder for everything; run again, it goes on. json: where the report goes. pictures, clips, clip_instruct,
    stories, seed: of the world. quick: a few of each and four steps, which show that everything runs."""

    init: str = ""
    steps: int | None = None
    out: Path = Path("build/benchmarks/unified")
    json: str = "build/benchmarks/unified.json"
    pictures: int = 30_000
    clips: int = 3000
    clip_instruct: int = 1000
    stories: int = 3000
    seed: int = 0
    quick: bool = False


def make_data(options: Options) -> str:
    """The dataset folder: without the web's pictures, whose alt texts would have to be described anew first."""
    world, data = options.out / "world", str(options.out / "data")
    rows = World(world, options.pictures, options.seed, clips=options.clips, clip_instruct=options.clip_instruct,
                 stories=options.stories)  # fmt: skip
    write_sources(replace(rows, pictures=200, clips=20, clip_instruct=20, stories=40) if options.quick else rows)
    connect()
    named = {name: name for name in ("synthetic", "instruct", "clips", "clip_instruct")} | {"stories:omnicorpus": "stories"}
    curate(CurateConfig(source=tuple(f"{name}={world / folder}" for name, folder in named.items()), out=data))
    encode(EncodeConfig(data=data, teacher=not options.init))
    encode(EncodeConfig(data=data, clips=True))
    return data


def train_small(options: Options, data: str) -> str:
    """The export of a `tiny-stage2` that is trained from nothing."""
    small = [recipe_of(options, recipe.name) for recipe in recipes.chain("tiny-distill", "tiny-stage2")]
    if train_through(Train(small[0], (data,), str(options.out / "small")), small) != "finished":
        raise KeyboardInterrupt
    return str(options.out / "small" / small[-1].name / "export")


def recipe_of(options: Options, name: str) -> Recipe:
    """A recipe as shipped, but for the options."""
    recipe = replace(recipes.get(name), seed=options.seed)
    return replace(recipe, steps=4, noised_steps=2, warmup=1, log_every=1, checkpoint_every=4) if options.quick else recipe


def scores(options: Options, name: str, checkpoint: str) -> dict[str, float]:
    """The judge's scores of a checkpoint."""
    path = options.out / f"{name}.json"
    if not path.exists():
        evaluate(Evaluate(json=path, checkpoint=checkpoint, seed=options.seed, **(QUICK if options.quick else ASKED)))
    found = json.loads(path.read_text())
    return {parts: found[part]["score"] for part, parts in PARTS.items()}


def run(options: Options) -> Report:
    """Make the data, train, judge."""
    data = make_data(options)
    init = options.init or train_small(options, data)
    before, start = scores(options, "before", init), time.monotonic()
    recipe = recipe_of(options, "tiny-unified")
    recipe = replace(recipe, steps=options.steps or recipe.steps)
    if train(Train(recipe, (data,), str(options.out / "run"), init)) != "finished":
        raise KeyboardInterrupt
    minutes = (time.monotonic() - start) / 60
    shipped = shutil.copytree(options.out / "run" / "export", options.out / "shipped", dirs_exist_ok=True)
    halve(shipped)
    after = scores(options, "after", str(shipped))
    rows = [Row(f"{parts} that are right, {told}", found[parts], "") for told, found in (("before", before), ("after", after))
            for parts in found]  # fmt: skip
    aims = [Aim(f"{parts} that are right", after[parts], ">=", 0.9) for parts in after]
    return Report("unified", [*rows, Row("training", minutes, "min")], aims)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
