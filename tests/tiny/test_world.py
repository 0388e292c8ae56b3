import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showo2.tiny import world

seeds = st.integers(0, 2**32)
HELD_OUT = {text for category in world.CATEGORIES for text in world.prompts(category, True)}


@given(seeds, st.booleans(), st.sampled_from(list(world.STYLES)))
def test_parse_is_the_inverse_of_describe(seed, held_out, style):
    scene = world.draw_scene(random.Random(seed), held_out)
    text = world.describe(scene, style)
    assert world.parse(text) == world.summarise(scene, style)
    assert world.phrase(world.parse(text)) == text
    assert text.isascii() and text == text.lower()


@given(seeds, st.booleans())
def test_every_caption_of_a_scene_holds_for_it(seed, held_out):
    scene = world.draw_scene(random.Random(seed), held_out)
    for style in world.STYLES:
        assert world.satisfies(scene, world.parse(world.describe(scene, style)))


@given(seeds)
def test_objects_keep_apart_and_inside(seed):
    things = world.draw_scene(random.Random(seed)).objects
    assert 1 <= len(things) <= 4
    assert all(world.separate(a, b) for i, a in enumerate(things) for b in things[:i])
    assert all(t.r < t.x < 1 - t.r and t.r < t.y < 1 - t.r for t in things)


@given(seeds)
def test_training_scenes_are_told_without_a_held_out_prompt(seed):
    scene = world.draw_scene(random.Random(seed))
    assert not world.shows_held_out(scene)
    told = world.training_styles(scene)
    assert "full" in told
    mirrored = world.Scene(scene.objects[::-1])
    said = {world.describe(s, style) for s in (scene, mirrored) for style in told}
    assert not said & HELD_OUT


@given(seeds)
def test_held_out_scenes_are_held_out(seed):
    scene = world.draw_scene(random.Random(seed), held_out=True)
    assert world.shows_held_out(scene)


def test_any_scene_may_be_either():
    rng = random.Random(0)
    shown = {world.shows_held_out(world.draw_scene(rng, held_out=None)) for _ in range(100)}
    assert shown == {True, False}


@pytest.mark.parametrize("category", world.CATEGORIES)
def test_prompts_split_each_category(category):
    held_out, training = world.prompts(category, True), world.prompts(category, False)
    assert held_out == world.prompts(category, True) and not set(held_out) & set(training)
    assert all(world.is_held_out(text) for text in held_out)
    assert not any(world.is_held_out(text) for text in training)
    assert len(held_out) >= 4 and len(training) >= 2 * len(held_out) or category == "position"
    words = " ".join(training)
    assert all(shape in words for shape in world.SHAPES)


def test_held_out_does_not_depend_on_order_or_wording():
    for text in world.prompts("position", True)[:20]:
        told = world.parse(text)
        turned = world.Description(told.groups[::-1], relation=world.OPPOSITE[told.relation])
        assert world.is_held_out(world.phrase(turned))


def test_scenes_are_a_function_of_the_seed():
    assert world.draw_scene(random.Random(7)) == world.draw_scene(random.Random(7))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a red circle left of a blue square", True),
        ("a blue square right of a red circle", True),
        ("a blue square and a red circle", True),
        ("a square and a circle", True),
        ("a red circle above a blue square", False),
        ("a red circle", False),
        ("two red circles and a blue square", False),
        ("a blue circle left of a red square", False),
    ],
)
def test_satisfies(text, holds):
    scene = world.Scene(
        (world.Object("red", "circle", 0.25, 0.5, 0.15), world.Object("blue", "square", 0.75, 0.5, 0.15))
    )
    assert world.satisfies(scene, world.parse(text)) is holds


@pytest.mark.parametrize("text", ["", "a mauve circle", "IMG_0231.jpg", "a red circle near a blue square"])
def test_parse_names_what_it_cannot_read(text):
    with pytest.raises(ValueError, match="not a caption"):
        world.parse(text)


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="'poem'.*full"):
        world.describe(world.draw_scene(random.Random(0)), "poem")
    with pytest.raises(ValueError, match="'texture'.*counting"):
        world.prompts("texture", True)
