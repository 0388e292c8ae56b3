"""Training stages as data: `recipes.get(name)`, `recipes.RECIPES`."""

from difflib import get_close_matches

from showo2.recipes.tiny import TINY
from showo2.train.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in TINY}


def get(name: str) -> Recipe:
    """The recipe of that name; the error of an unknown one lists what there is."""
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no recipe is named {name!r}; {hint}known: {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = ["RECIPES", "Recipe", "get"]
