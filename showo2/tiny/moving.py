"""What happens in the world of shapes: clips of an object that crosses the picture, and stories of one that is elsewhere
in every picture. About a fifth of the motions is held out; of stories, whatever shows or says a held-out picture."""

import hashlib
import random
from dataclasses import dataclass, replace
from itertools import product

from PIL import Image

from showo2.movies import mp4
from showo2.tiny.render import render
from showo2.tiny.words import PLACES, Description, Group, parse, phrase
from showo2.tiny.world import (
    COLOURS,
    SHAPES,
    Object,
    Scene,
    describe,
    draw_kind,
    is_held_out,
    placed,
    shows_held_out,
    summarise,
)

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
TRAVEL = 0.5  # of the picture's side, in the whole clip
SECONDS, RATE = 3, 24
_MOVES = " moves to the "


@dataclass(frozen=True)
class Motion:
    """An object that crosses the picture at one speed; `thing` is where it is halfway."""

    thing: Object
    direction: str

    def at(self, share: float) -> Scene:
        """The scene when this share (0 to 1) of the clip is over."""
        way = TRAVEL * (share - 0.5)
        dx, dy = DIRECTIONS[self.direction]
        return Scene((replace(self.thing, x=self.thing.x + way * dx, y=self.thing.y + way * dy),))


def describe_motion(motion: Motion) -> str:
    """The caption of a clip: `a red circle moves to the left`."""
    return _told(motion.thing.colour, motion.thing.shape, motion.direction)


def _told(colour: str, shape: str, direction: str) -> str:
    return phrase(Description((Group(1, shape, colour),))) + _MOVES + direction


def parse_motion(text: str) -> tuple[Group, str]:
    """What moves, and where to; ValueError names a text that is no caption of a clip."""
    body, found, direction = text.strip().rstrip(".").lower().rpartition(_MOVES)
    if not found or direction not in DIRECTIONS:
        raise ValueError(f"not a caption of a clip of the world of shapes: {text!r}")
    return parse(body).groups[0], direction


def motion_is_held_out(text: str) -> bool:
    """Whether no clip for training has this caption."""
    return hashlib.sha256(f"held-out motion:{text}".encode()).digest()[0] < 64


def motion_prompts(held_out: bool) -> list[str]:
    """All captions of clips, held out or for training."""
    told = [_told(*kind) for kind in product(COLOURS, SHAPES, DIRECTIONS)]
    return [text for text in told if motion_is_held_out(text) == held_out]


def draw_motion(rng: random.Random, held_out: bool = False) -> Motion:
    """Draw a motion for training, or a held-out one."""
    while True:
        thing = placed(rng, draw_kind(rng), "centre")
        motion = Motion(thing, rng.choice(list(DIRECTIONS)))
        if motion_is_held_out(describe_motion(motion)) == held_out:
            return motion


def first_picture(prompt: str, rng: random.Random, side: int) -> Image.Image:
    """A picture that a clip with this caption may begin with, `side` pixels wide: windows of 2 s begin in a movie's first one."""
    kind, direction = parse_motion(prompt)
    motion = Motion(placed(rng, (str(kind.colour), kind.shape), "centre"), direction)
    return render(motion.at(rng.random() / SECONDS), side)


def movie(motion: Motion, side: int) -> bytes:
    """The clip as an mp4 (H.264) of `side` pixels, three seconds at 24 frames a second."""
    last = SECONDS * RATE - 1
    frames = (render(motion.at(number / last), side) for number in range(last + 1))
    return mp4(frames, RATE, crf="18", preset="ultrafast")


@dataclass(frozen=True)
class Story:
    """Pictures of one object, each with its text: the first says all, the others not its colour."""

    scenes: tuple[Scene, ...]

    @property
    def texts(self) -> list[str]:
        """One text a picture: `a red circle at the left`, `a circle at the top`."""
        first, *others = self.scenes
        return [describe(first), *(phrase(_colourless(scene)) for scene in others)]


def story_prompts(held_out: bool) -> list[str]:
    """All first texts of stories, held out or for training."""
    told = [phrase(Description((Group(1, shape, colour),), place)) for colour, shape, place in product(COLOURS, SHAPES, PLACES)]
    return [text for text in told if is_held_out(text) == held_out]


def _colourless(scene: Scene) -> Description:
    told = summarise(scene)
    return replace(told, groups=tuple(replace(group, colour=None) for group in told.groups))


def draw_story(rng: random.Random, held_out: bool = False) -> Story:
    """Draw a story of two to four pictures for training, or one that shows or says something that is held out."""
    while True:
        kind = draw_kind(rng)
        places = rng.sample(PLACES, rng.randint(2, 4))
        story = Story(tuple(Scene((placed(rng, kind, place),)) for place in places))
        if held_out == (any(map(is_held_out, story.texts)) or any(map(shows_held_out, story.scenes))):
            return story
