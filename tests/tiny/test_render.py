import random

import numpy as np
import pytest

from showo2.tiny.render import render
from showo2.tiny.world import BACKGROUND, COLOURS, Object, Scene, draw_scene


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize("size", [64, 96, 512])
def test_area_and_colour_are_those_of_the_object(shape, size):
    picture = np.asarray(render(Scene((Object("red", shape, 0.5, 0.5, 0.17),)), size)).astype(int)
    assert picture.shape == (size, size, 3)
    ink = (picture - np.array(BACKGROUND)).sum(-1) / (np.array(COLOURS["red"]) - BACKGROUND).sum()
    expected = {"circle": np.pi, "square": 4.0, "triangle": 2.0}[shape] * 0.17**2
    assert ink.mean() == pytest.approx(expected, rel=0.05)
    assert tuple(picture[0, 0]) == BACKGROUND
    ys, xs = np.nonzero(ink > 0.5)
    assert np.mean([xs.min(), xs.max()]) / (size - 1) == pytest.approx(0.5, abs=0.01)
    assert np.mean([ys.min(), ys.max()]) / (size - 1) == pytest.approx(0.5, abs=0.02)


def test_sizes_show_the_same_scene():
    scene = draw_scene(random.Random(3))
    small, large = render(scene, 64), render(scene, 640).resize((64, 64))
    error = np.asarray(small).astype(float) - np.asarray(large)
    assert np.sqrt((error**2).mean()) < 6


def test_wide_picture_holds_the_square_one_in_its_middle():
    scene = draw_scene(random.Random(5))
    wide = render(scene, (640, 512))
    assert wide.size == (640, 512)
    assert np.array_equal(wide.crop((64, 0, 576, 512)), render(scene, 512))
