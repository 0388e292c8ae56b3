"""Recipes are consistent with themselves and with one another."""

from dataclasses import replace

import pytest
import torch

from showo2 import recipes
from showo2.data.mixture import Entry
from showo2.model import Showo2
from showo2.recipes.tiny import DISTILL, STAGE1, STAGE2
from showo2.train.optimizer import freeze
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
    assert STAGE1.alpha == 0.2 and STAGE2.alpha == 0.2, "not the paper's 1: see docs/log.md"
    assert {part for group in STAGE2.groups for part in group.parts} == set(PARTS)
    assert all(recipe.batch % 16 == 0 for recipe in (DISTILL, STAGE1, STAGE2)), "up to 16 workers get equal shares"
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


def test_a_chain_is_the_recipes_between_two():
    names = [recipe.name for recipe in recipes.chain("tiny-stage1", "tiny-7b-stage1")]
    assert names == ["tiny-stage1", "tiny-stage2", "tiny-7b-align", "tiny-7b-stage1"]
    with pytest.raises(ValueError, match="tiny-stage2 does not come before tiny-stage1"):
        recipes.chain("tiny-stage2", "tiny-stage1")


@pytest.mark.parametrize(("name", "batch", "context", "alpha", "steps"), [
    ("1.5b-distill", 512, 1024, 1.0, 200_000), ("1.5b-stage1a", 512, 1024, 0.2, 150_000),
    ("1.5b-stage1b", 512, 1024, 0.2, 40_000), ("1.5b-stage2c", 512, 1024, 1.0, 12_500),
    ("1.5b-high512", 512, 1280, 1.0, 20_000), ("1.5b-story", 128, 4352, 0.2, 50_000), ("7b-align", 512, 1024, 0.2, 3_000),
])  # fmt: skip
def test_the_papers_numbers(name, batch, context, alpha, steps):
    recipe = recipes.get(name)
    assert (recipe.batch, recipe.context, recipe.alpha, recipe.steps) == (batch, context, alpha, steps)


def test_stage_2_is_35_thousand_steps_with_a_slow_s():
    stages = [recipes.get(f"1.5b-stage2{part}") for part in "abc"]
    assert sum(stage.steps for stage in stages) == 35_000
    assert [group.lr for group in stages[2].groups] == [2e-6, 1e-5]
    assert {part for group in stages[2].groups for part in group.parts} == set(PARTS)
    assert all(stage.schedule == "cosine" and stage.warmup == stage.steps * 3 // 100 for stage in stages)


@pytest.mark.parametrize(("name", "total", "stage1"), [("1.5b-stage1a", 2_830_777_056, 890_331_072),
                                                       ("7b-stage1a", 8_932_118_752, 922_191_808)])  # fmt: skip
def test_real_sizes_are_the_papers(name, total, stage1):
    recipe = recipes.get(name)
    with torch.device("meta"):
        model = Showo2(recipes.model_config(recipe))
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in freeze(model, recipe).values()) == stage1


def test_every_document_of_a_recipe_fits_its_context():
    for recipe in recipes.RECIPES.values():
        for entry in recipe.mixture:
            frames, height, width = entry.bucket or recipe.bucket
            assert recipe.distills or frames * height * width // 4 + 8 <= recipe.context, recipe.name
