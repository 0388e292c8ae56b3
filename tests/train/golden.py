"""Golden loss curves: the first steps of the tiny recipes, on a small set of random latents with the shipped parts.

`python -m tests.train.golden` writes them anew, which a change of recipes, parts or numerics makes necessary; the
difference shows what the change did. Each stage goes on from an earlier one, as in training.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from showo2.recipes.tiny import TINY
from showo2.shards import Manifest, TextRow
from showo2.tiny import resolve
from showo2.train.recipe import Parallel, Recipe
from showo2.train.trainer import Trainer
from tests.train.small import small_dataset, story, text_of, uid_of, write_shard

CURVES = Path(__file__).with_name("curves.json")
# Batches are an eighth of the recipe's.
STEPS, SHARE = 4, 8
# What a stage goes on from, where that is not the one before it.
FROM = {"tiny-stage1-video": "tiny-stage1", "tiny-unified": "tiny-stage2", "tiny-high96": "tiny-stage2"}


def short(recipe: Recipe) -> Recipe:
    """The first steps of a recipe, warm-up and noised steps cut to two, in fp32: not every processor has bf16.

    Rates are a tenth: after whole steps of Adam, which makes much of gradients near zero, what processors round otherwise
    had grown to percents by the end of the ladder.
    """
    groups = tuple(replace(group, lr=group.lr / 10) for group in recipe.groups)
    mixture = tuple(replace(entry, samples=max(1, entry.samples // SHARE)) for entry in recipe.mixture)
    return replace(recipe, mixture=mixture, groups=groups, steps=STEPS, warmup=min(2, recipe.warmup), checkpoint_every=9, log_every=1,
                   noised_steps=min(2, recipe.noised_steps), parallel=Parallel())


def ready() -> list[Recipe]:
    """The tiny recipes whose language model ships."""
    return [recipe for recipe in TINY if _ships(recipe.model.llm)]


def _ships(part: str) -> bool:
    try:
        return bool(resolve(part))
    except FileNotFoundError:
        return False


def moving_dataset(folder: Path) -> str:
    """Clips, conversations about clips, stories of three pictures, and what 96 px need, under `folder`."""
    latents = folder / "latents"
    latents.mkdir(parents=True)
    shards = [write_shard(latents, "clips", "pair", 0, range(12), (5, 8, 8)),
              write_shard(latents, "instruct", "conversation", 2, range(12), (5, 8, 8)),
              write_shard(latents, "stories", "interleaved", 0, range(12), (3, 8, 8), told),
              write_shard(latents, "large", "pair", 0, range(12), (1, 12, 12)),
              write_shard(latents, "instruct", "conversation", 1, range(12), (1, 12, 12))]  # fmt: skip
    (latents / "manifest.json").write_bytes(Manifest("moving", tuple(shards)).to_json())
    return str(folder)


def told(source: str, row: int) -> TextRow:
    """The messages of a story: a text before each of its pictures."""
    segments = [segment for picture in range(3) for segment in
                ({"text": text_of("web", row + picture).text}, {"image": picture})]  # fmt: skip
    return TextRow(uid_of(source, row), messages=json.dumps(segments))


def curves(folder: Path) -> dict[str, list[float]]:
    """The losses of each recipe's first steps."""
    data, before, made = (small_dataset(folder / "data"), moving_dataset(folder / "moving")), "", {}
    for recipe in ready():
        before = FROM.get(recipe.name, before)
        Trainer(short(recipe), data, folder / recipe.name, str(folder / before) if before else None).run()
        made[recipe.name] = [round(line["loss"], 5) for line in story(folder / recipe.name)]
        before = recipe.name
    return made


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        CURVES.write_text(json.dumps(curves(Path(temporary)), indent=1) + "\n")
