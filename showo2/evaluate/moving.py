"""The exact judge of clips and stories of the world of shapes (`showo2.tiny.moving`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from PIL import Image

from showo2.evaluate.shapes import Detected, detect, judge
from showo2.tiny.moving import DIRECTIONS, parse_motion
from showo2.tiny.world import parse

# Of the picture's side, in the two seconds of a clip: an object crosses a third of it.
LEAST_WAY = 0.15
MOST_ASIDE = 0.1


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


def judge_story(texts: Sequence[str], pictures: Sequence[Image.Image]) -> list[bool]:
    """Of each picture, whether it shows what its text says, in the colour that the first text told."""
    colour = parse(texts[0]).groups[0].colour
    verdicts = []
    for text, picture in zip(texts, pictures, strict=True):
        told = parse(text)
        whole = replace(told, groups=tuple(replace(group, colour=group.colour or colour) for group in told.groups))
        verdicts.append(judge(whole, detect(picture)))
    return verdicts
