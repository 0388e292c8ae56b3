"""Clips and stories as they are drawn are right; frozen, turned, recoloured or crowded ones are not."""

import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.clips import ClipReader
from showo2.evaluate.moving import judge_clip, judge_story
from showo2.tiny.moving import DIRECTIONS, Motion, describe_motion, draw_motion, draw_story, movie
from showo2.tiny.render import render
from showo2.tiny.world import Object, Scene

FRAMES = 17
seeds = st.integers(0, 10**6)


def window(motion: Motion, side: int = 64) -> list[Image.Image]:
    """What a clip of two of the three seconds shows, reduced to the size at which the tiny model sees it."""
    return [render(motion.at(1 / 6 + 2 / 3 * frame / (FRAMES - 1)), side) for frame in range(FRAMES)]


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_a_motion_is_what_its_caption_says_and_nothing_else(seed, held_out):
    motion = draw_motion(random.Random(seed), held_out)
    frames, text = window(motion), describe_motion(motion)
    assert judge_clip(text, frames)
    others = [d for d in DIRECTIONS if d != motion.direction]
    assert not any(judge_clip(text.replace(motion.direction, other), frames) for other in others)
    assert not judge_clip(text, frames[::-1]) and not judge_clip(text, frames[:1] * FRAMES)
    red = "red" if motion.thing.colour != "red" else "blue"
    assert not judge_clip(text.replace(motion.thing.colour, red).replace("an red", "a red"), frames)
    corner = Object("green", "circle", 0.13, 0.13, 0.11)
    crowded = [render(Scene((*motion.at(0.5).objects, corner)), 64)]
    assert not judge_clip(text, [*frames[:8], *crowded, *frames[9:]])


def test_a_clip_of_the_mp4_is_right_too():
    reader = ClipReader()
    for seed in range(4):
        motion = draw_motion(random.Random(seed))
        clip = reader.read(movie(motion, 512), f"{seed:032x}")
        frames = [Image.fromarray(frame).resize((64, 64), Image.Resampling.BICUBIC) for frame in clip.frames]
        assert len(frames) == FRAMES and judge_clip(describe_motion(motion), frames)
    reader.close()


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_a_story_keeps_the_colour_of_its_first_text(seed, held_out):
    story = draw_story(random.Random(seed), held_out)
    pictures = [render(scene, 64) for scene in story.scenes]
    parts = [part for pair in zip(story.texts, pictures, strict=True) for part in pair]
    assert 2 <= len(pictures) <= 4 and judge_story(parts)
    assert all(word not in text for text in story.texts[1:] for word in (story.scenes[0].objects[0].colour,))
    thing = story.scenes[-1].objects[0]
    wrong = Scene((replace(thing, colour="red" if thing.colour != "red" else "blue"),))
    assert not judge_story([*parts[:-1], render(wrong, 64)])
    assert not judge_story([*parts[:-1], Image.fromarray(np.zeros((64, 64, 3), np.uint8))])
    for cut in (parts[:2], parts[:-1], [*parts, "a"], [*parts[:-2], "nonsense", parts[-1]], parts[1:], []):
        assert not judge_story(cut)
    other = "square" if thing.shape != "square" else "circle"
    assert not judge_story([*parts[:-2], parts[-2].replace(thing.shape, other), render(Scene((replace(thing, shape=other),)), 64)])
