"""The exact judge of clips and stories of the world of shapes (`showo2.tiny.moving`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from PIL import Image

from showo2.evaluate.shapes import Detected, detect, judge
from showo2.tiny.moving import DIRECTIONS, parse_motion
from showo2.tiny.words import Description, Group
from showo2.tiny.world import parse

# Of the picture's side, in the two seconds of a clip: an object crosses a third of it.
LEAST_WAY = 0.15
MOST_ASIDE = 0.1
NEAR = 0.05
LEAST_PICTURES = 2


def judge_clip(prompt: str, frames: Sequence[Image.Image]) -> bool:
    """Whether every frame shows the object of `prompt` alone, and from the first to the last it goes where it says.

    It may not turn back by more than a fiftieth of the side.
    """
    wanted, direction = parse_motion(prompt)
    seen: list[Detected] = []
    for frame in frames:
        found = detect(frame)
        if [(thing.colour, thing.shape) for thing in found] != [(wanted.colour, wanted.shape)]:
            return False
        seen += found
    dx, dy = DIRECTIONS[direction]
    along = [thing.x * dx + thing.y * dy for thing in seen]
    across = [thing.x * dy + thing.y * dx for thing in seen]
    steady = all(after - before > -0.02 for before, after in pairwise(along))
    return along[-1] - along[0] >= LEAST_WAY and max(across) - min(across) <= MOST_ASIDE and steady


def judge_animation(prompt: str, picture: Image.Image, frames: Sequence[Image.Image]) -> bool:
    """As `judge_clip`; and the first frame shows the object where `picture` does, within a twentieth of the side."""
    pairs = zip(detect(picture), detect(frames[0]), strict=False)
    return judge_clip(prompt, frames) and all(abs(a.x - b.x) <= NEAR and abs(a.y - b.y) <= NEAR for a, b in pairs)


def judge_story(parts: Sequence[str | Image.Image]) -> bool:
    """Whether texts and pictures take turns, from a text to a picture, at least two of each, and tell of one object.

    The first text says its colour and shape; each picture shows it alone, where its own text says, and no text calls it
    something else.
    """
    texts, pictures = parts[::2], parts[1::2]
    told = [read for text in texts if (read := _read(text))]
    if len(pictures) < LEAST_PICTURES or not len(told) == len(texts) == len(pictures):
        return False
    thing = told[0].groups[0]
    return all(isinstance(picture, Image.Image) and _shows(thing, text, picture)
               for text, picture in zip(told, pictures, strict=True))


def _read(text: str | Image.Image) -> Description | None:
    """What a text of a story says; None where it is no caption of one object and a place."""
    try:
        told = parse(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return told if told and told.place and sum(group.count for group in told.groups) == 1 else None


def _shows(thing: Group, told: Description, picture: Image.Image) -> bool:
    named = told.groups[0]
    same = named.shape == thing.shape and named.colour in (None, thing.colour)
    return same and judge(replace(told, groups=(thing,)), detect(picture))
