"""Recipes are consistent with themselves and with one another."""

from dataclasses import replace

import pytest

from showo2 import recipes
from showo2.data.mixture import Entry
from showo2.recipes.tiny import DISTILL, STAGE1, STAGE2
from showo2.train.recipe import NEW_PARTS, PARTS, Group


def test_names_find_their_recipes():
    assert recipes.get("tiny-stage1") is STAGE1
    assert all(name == recipe.name and recipe.summary for name, recipe in recipes.RECIPES.items())


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'tiny-stage3'; did you mean tiny-stage[12]. known: tiny-distill"):
        recipes.get("tiny-stage3")


def test_the_tiny_ladder_is_the_papers():
    assert DISTILL.distills and DISTILL.start == "parts"
    assert [part for group in STAGE1.groups for part in group.parts] == list(NEW_PARTS)
    assert STAGE1.alpha == 0.2 and STAGE2.alpha == 1.0
    assert {part for group in STAGE2.groups for part in group.parts} == set(PARTS)
    assert all(recipe.batch == 64 for recipe in (DISTILL, STAGE1, STAGE2))
    assert STAGE1.bucket == (1, 8, 8)


@pytest.mark.parametrize(("changes", "message"), [
    ({"steps": 0}, "steps is 0; need 1 or more"),
    ({"groups": (Group(("fusoin.",), 1.0),)}, "no parameters are named ..fusoin."),
    ({"mixture": (Entry("a", "caption", "pair", 1), Entry("a", "generate", "pair", 1))}, "share a name"),
    ({"mixture": (Entry("a", "caption", "pair", 1), Entry("b", "distill", "pair", 1))}, "does not mix"),
    ({"mixture": (Entry("a", "caption", "pair", 0),)}, "batch is 0"),
])
def test_inconsistent_recipe_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(STAGE1, **changes)
