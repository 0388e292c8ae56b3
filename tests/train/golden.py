"""Golden loss curves: the first steps of the tiny recipes, on a small set of random latents with the shipped parts.

`python -m tests.train.golden` writes them anew, which a change of recipes, parts or numerics makes necessary; the
difference shows what the change did. Each stage goes on from the one before, as in training.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from showo2 import recipes
from showo2.tiny import resolve
from showo2.train.recipe import Parallel, Recipe
from showo2.train.trainer import Trainer
from tests.train.small import small_dataset, story

CURVES = Path(__file__).with_name("curves.json")
# Batches are an eighth of the recipe's.
STEPS, SHARE = 4, 8


def short(recipe: Recipe) -> Recipe:
    """The first steps of a recipe, warm-up and noised steps cut to two, in fp32: not every processor has bf16."""
    mixture = tuple(replace(entry, samples=max(1, entry.samples // SHARE)) for entry in recipe.mixture)
    return replace(recipe, mixture=mixture, steps=STEPS, warmup=min(2, recipe.warmup), checkpoint_every=9, log_every=1,
                   noised_steps=min(2, recipe.noised_steps), parallel=Parallel())


def ready() -> list[Recipe]:
    """The recipes of the chain whose language model ships."""
    return [recipe for recipe in recipes.chain("tiny-distill", "tiny-7b-stage2") if _ships(recipe.model.llm)]


def _ships(part: str) -> bool:
    try:
        return bool(resolve(part))
    except FileNotFoundError:
        return False


def curves(folder: Path) -> dict[str, list[float]]:
    """The losses of each recipe's first steps."""
    data, init, made = (small_dataset(folder / "data"),), None, {}
    for recipe in ready():
        Trainer(short(recipe), data, folder / recipe.name, init).run()
        made[recipe.name] = [round(line["loss"], 5) for line in story(folder / recipe.name)]
        init = str(folder / recipe.name)
    return made


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        CURVES.write_text(json.dumps(curves(Path(temporary)), indent=1) + "\n")
