"""The judge accepts every drawn scene and rejects every kind of wrong picture."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from showo2.evaluate.shapes import detect, judge, judge_picture
from showo2.tiny.render import render
from showo2.tiny.world import BACKGROUND, COLOURS, STYLES, Object, Scene, describe, draw_scene, parse

RED_CIRCLE = Object("red", "circle", 0.28, 0.5, 0.14)
BLUE_SQUARE = Object("blue", "square", 0.72, 0.5, 0.14)
PROMPT = "a red circle left of a blue square"


def scene(*objects: Object) -> Image.Image:
    return render(Scene(objects), 64)


def right(drawn: Scene, image: Image.Image) -> bool:
    found = detect(image)
    seen = sorted((d.colour or "?", d.shape or "?") for d in found)
    return seen == sorted((o.colour, o.shape) for o in drawn.objects) and all(
        judge(parse(describe(drawn, style)), found) for style in STYLES)


@pytest.mark.parametrize(("size", "number"), [(64, 1500), (96, 300), (512, 300)])
def test_every_drawn_scene_is_right(size: int, number: int) -> None:
    rng = random.Random(size)
    for i in range(number):
        drawn = draw_scene(rng, held_out=i % 2 == 0)
        assert right(drawn, render(drawn, size)), drawn


def test_places_and_sizes_are_exact() -> None:
    rng = random.Random(5)
    for _ in range(200):
        drawn = draw_scene(rng)
        found = detect(render(drawn, 64))
        for thing in drawn.objects:
            nearest = min(found, key=lambda d: abs(d.x - thing.x) + abs(d.y - thing.y))
            assert abs(nearest.x - thing.x) < 0.012 and abs(nearest.y - thing.y) < 0.012
            assert abs(nearest.r - thing.r) < 0.012


def test_blur_and_noise_are_seen_through() -> None:
    rng, noise = random.Random(6), np.random.default_rng(6)
    for _ in range(400):
        drawn = draw_scene(rng)
        pixels = np.asarray(render(drawn, 64).filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32)
        pixels = (pixels + noise.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        assert right(drawn, Image.fromarray(pixels)), drawn


def test_the_asked_picture_is_right() -> None:
    assert judge_picture(PROMPT, scene(RED_CIRCLE, BLUE_SQUARE))
    assert judge_picture("a blue square right of a red circle", scene(RED_CIRCLE, BLUE_SQUARE))


WRONG = {
    "nothing": scene(),
    "an object is missing": scene(RED_CIRCLE),
    "an object too many": scene(RED_CIRCLE, BLUE_SQUARE, Object("green", "circle", 0.5, 0.15, 0.11)),
    "an object twice": scene(RED_CIRCLE, BLUE_SQUARE, Object("red", "circle", 0.5, 0.15, 0.11)),
    "a small object too many": scene(RED_CIRCLE, BLUE_SQUARE, Object("green", "circle", 0.5, 0.15, 0.05)),
    "a wrong colour": scene(replace(RED_CIRCLE, colour="orange"), BLUE_SQUARE),
    "a wrong shape": scene(RED_CIRCLE, replace(BLUE_SQUARE, shape="triangle")),
    "colours swapped": scene(replace(RED_CIRCLE, colour="blue"), replace(BLUE_SQUARE, colour="red")),
    "shapes swapped": scene(replace(RED_CIRCLE, shape="square"), replace(BLUE_SQUARE, shape="circle")),
    "sides swapped": scene(replace(RED_CIRCLE, x=0.72), replace(BLUE_SQUARE, x=0.28)),
    "above instead of left of": scene(replace(RED_CIRCLE, x=0.5, y=0.25), replace(BLUE_SQUARE, x=0.5, y=0.75)),
    "neither left of nor above": scene(replace(RED_CIRCLE, x=0.3, y=0.3), replace(BLUE_SQUARE, x=0.7, y=0.7)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_pictures_are_rejected(kind: str) -> None:
    assert not judge_picture(PROMPT, WRONG[kind])


@pytest.mark.parametrize(("prompt", "image"), [
    ("three red circles", scene(RED_CIRCLE, replace(RED_CIRCLE, x=0.72))),
    ("two red circles", scene(*(replace(RED_CIRCLE, x=x, y=0.3) for x in (0.2, 0.5, 0.8)))),
    ("two red circles", scene(RED_CIRCLE, replace(RED_CIRCLE, x=0.72, colour="pink"))),
    ("a circle at the right", scene(RED_CIRCLE)),
    ("a circle at the left", scene(RED_CIRCLE, replace(RED_CIRCLE, x=0.72))),
    ("a circle and a square", scene(RED_CIRCLE, replace(RED_CIRCLE, x=0.72))),
    ("a red circle", scene(replace(RED_CIRCLE, shape="square"))),
    ("a red circle", scene(RED_CIRCLE, BLUE_SQUARE)),
    ("a red circle and a blue square", scene(RED_CIRCLE, replace(BLUE_SQUARE, colour="purple"))),
])
def test_wrong_counts_places_and_colours_are_rejected(prompt: str, image: Image.Image) -> None:
    assert not judge_picture(prompt, image)


def canvas(colour: tuple[int, int, int] = BACKGROUND) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (64, 64), colour)
    return image, ImageDraw.Draw(image)


def drawn(kind: str) -> Image.Image:
    image, draw = canvas(COLOURS["red"] if kind == "all red" else BACKGROUND)
    red, blue = COLOURS["red"], COLOURS["blue"]
    if kind == "rectangle":
        draw.rectangle((12, 24, 50, 38), fill=red)
    elif kind == "diamond":
        draw.polygon(((32, 16), (48, 32), (32, 48), (16, 32)), fill=red)
    elif kind == "ring":
        draw.ellipse((18, 18, 46, 46), outline=red, width=6)
    elif kind == "triangle upside down":
        draw.polygon(((18, 18), (46, 18), (32, 46)), fill=red)
    elif kind == "two that touch":
        draw.ellipse((10, 20, 32, 42), fill=red)
        draw.ellipse((30, 20, 52, 42), fill=red)
    elif kind == "half red, half blue":
        draw.ellipse((18, 18, 46, 46), fill=red)
        draw.rectangle((18, 18, 31, 46), fill=BACKGROUND)
        draw.chord((18, 18, 46, 46), 90, 270, fill=blue)
    elif kind == "grey":
        draw.ellipse((18, 18, 46, 46), fill=(120, 120, 120))
    elif kind == "confetti":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
    return image


@pytest.mark.parametrize("kind", ["rectangle", "diamond", "ring", "triangle upside down", "two that touch",
                                  "half red, half blue", "grey", "confetti", "all red", "blank"])
def test_what_is_no_shape_of_the_world_is_rejected(kind: str) -> None:
    image = drawn(kind)
    for prompt in ("a red circle", "a red square", "a red triangle", "two red circles", "a circle and a square",
                   "a square at the centre", "a red circle and a blue circle"):
        assert not judge_picture(prompt, image), prompt


def test_objects_of_different_colours_may_touch() -> None:
    image, draw = canvas()
    draw.ellipse((8, 22, 30, 44), fill=COLOURS["red"])
    draw.rectangle((31, 22, 53, 44), fill=COLOURS["blue"])
    assert judge_picture(PROMPT, image)


def test_a_tiny_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="32x32 px is too small"):
        detect(Image.new("RGB", (32, 32)))


def test_a_prompt_outside_the_world_is_an_error() -> None:
    with pytest.raises(ValueError, match="a large dog"):
        judge_picture("a large dog", scene(RED_CIRCLE))
