"""Training stages as data: `recipes.get(name)`, `recipes.RECIPES`, and the sizes of a recipe's model."""

from difflib import get_close_matches

from showo2.model import Showo2Config
from showo2.model.checkpoint import part_configs
from showo2.recipes.paper import PAPER, SIZES
from showo2.recipes.tiny import TINY
from showo2.text import Tokenizer
from showo2.train.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*TINY, *PAPER)}


def get(name: str) -> Recipe:
    """The recipe of that name; the error of an unknown one lists what there is."""
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no recipe is named {name!r}; {hint}known: {', '.join(RECIPES)}")
    return RECIPES[name]


def chain(first: str, last: str) -> list[Recipe]:
    """The recipes from one to another, in the order of `RECIPES`. Raises ValueError where they come the other way."""
    names = list(RECIPES)
    start, stop = names.index(get(first).name), names.index(get(last).name)
    if start > stop:
        raise ValueError(f"{first} does not come before {last}; the order is {', '.join(names)}")
    return [RECIPES[name] for name in names[start:stop + 1]]


def model_config(recipe: Recipe) -> Showo2Config:
    """The model that a recipe trains; its parts are read only where their sizes do not stand in `paper.SIZES`."""
    parts = recipe.model
    llm, siglip = SIZES.get(parts.llm), SIZES.get(parts.siglip)
    if llm is None or siglip is None:
        llm, siglip = part_configs(parts.llm, parts.siglip, Tokenizer.from_pretrained(parts.llm).vocab_size)
    return Showo2Config(llm, siglip, parts.flow, parts.grid, parts.order, parts.conversation, parts.size, parts.vae)


__all__ = ["RECIPES", "Recipe", "chain", "get", "model_config"]
