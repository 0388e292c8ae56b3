"""The world of shapes: scenes of one to four objects, and captions of them.

Lengths are fractions of the picture's side; x grows to the right and y downward. Everything is a pure function of
its arguments. A quarter of the prompts of every category is held out: no training text says one (`is_held_out`). A
quarter of the scenes, told apart by their full captions, is held out too: `draw_scene` draws them only when asked, so
that questions are about combinations that training never showed.

Captions leave out only what goes without saying: that a single object is in the centre, that two lie side by side,
that more fill the quarters in reading order (which they always do), and that shapes have their usual colours, as nobody
calls a banana yellow. A small model cannot choose among pictures that nothing in the prompt tells apart, and draws
their mean (docs/log.md).
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

from showo2.tiny.words import (
    BACKGROUND,
    CAPTION_PROMPTS,
    COLOURS,
    COUNTS,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SHAPES,
    STYLES,
    USUAL,
    Description,
    Group,
    merge,
    parse,
    phrase,
)

__all__ = [
    "BACKGROUND",
    "CAPTION_PROMPTS",
    "CATEGORIES",
    "COLOURS",
    "COUNTS",
    "OPPOSITE",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "STYLES",
    "USUAL",
    "Description",
    "Group",
    "Object",
    "Scene",
    "describe",
    "draw_kind",
    "draw_scene",
    "draw_style",
    "is_held_out",
    "parse",
    "phrase",
    "place_is_clear",
    "place_of",
    "placed",
    "prompts",
    "relation",
    "satisfies",
    "separate",
    "shows_held_out",
    "summarise",
    "training_styles",
]

CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
MIX = (25, 35, 20, 20)  # per cent of scenes with one object, two in a relation, equal ones, mixed ones
_PLACED = "placed"  # the full captions of single objects: a space of scenes, though not of prompts
_MARGIN = 0.03  # between an object and the border
_GAP = 0.05  # between the bounding boxes of two objects: 3 pixels at 64, so that a judge can part them
_CENTRE_RADIUS = 0.13  # closer to the middle than this is "centre"
_USUAL_SHARE = 1 / 3  # of scenes in which all shapes have their usual colours
_PLACE_MIX = (1, 1, 1, 1, 2)  # of PLACES
_SPOTS = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75), "centre": (0.5, 0.5)}
_QUARTERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))  # in reading order


@dataclass(frozen=True)
class Object:
    """One shape: centre (x, y) and half-size r in fractions of the picture's side.

    A circle has radius r, a square half-side r, a triangle (upright, isosceles) half-base r and height 2r.
    """

    colour: str
    shape: str
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class Scene:
    """One to four objects that do not touch."""

    objects: tuple[Object, ...]


def place_of(thing: Object) -> str:
    """Where an object lies: `centre`, or the side of the axis along which it is farther from the middle."""
    dx, dy = thing.x - 0.5, thing.y - 0.5
    if max(abs(dx), abs(dy)) < _CENTRE_RADIUS:
        return "centre"
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def place_is_clear(thing: Object) -> bool:
    """Whether nobody would doubt `place_of`."""
    dx, dy = abs(thing.x - 0.5), abs(thing.y - 0.5)
    return max(dx, dy) < 0.08 or (max(dx, dy) > 0.18 and abs(dx - dy) > 0.08)


def relation(a: Object, b: Object) -> str | None:
    """How a lies to b along the dominant axis, or None where neither axis dominates by 0.08 of the side."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(abs(dx) - abs(dy)) < 0.08:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def separate(a: Object, b: Object, gap: float = _GAP) -> bool:
    """Whether the bounding boxes of two objects are at least `gap` apart along an axis."""
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= a.r + b.r + gap


def summarise(scene: Scene, style: str = "full") -> Description:
    """What `describe` says about a scene, as data."""
    if style not in STYLES:
        raise ValueError(f"unknown caption style {style!r}; known: {', '.join(STYLES)}")
    things, related, place = scene.objects, None, None
    usual = style == "shapes" and all(o.colour == USUAL[o.shape] for o in things)
    if len(things) == 1:
        place = place_of(things[0])
        place = None if style == "colours" and place == "centre" else place
    elif len(things) == 2:
        related = relation(*things)
        if style != "full" and related in ("left of", "right of"):
            things, related = tuple(sorted(things, key=lambda o: o.x)), None
    groups = merge(Group(1, o.shape, None if usual else o.colour) for o in things)
    return Description(groups, place, related if len(groups) == 2 else None)


def describe(scene: Scene, style: str = "full") -> str:
    """A caption of a scene, lower case: `full` tells everything, `colours` not what goes without saying about where
    things lie, `shapes` no usual colours."""
    return phrase(summarise(scene, style))


def satisfies(scene: Scene, description: Description) -> bool:
    """Whether a picture of exactly these objects is what the description asks for, no more and no less."""
    coloured = any(group.colour for group in description.groups)
    found = Counter((o.colour if coloured else None, o.shape) for o in scene.objects)
    wanted: Counter[tuple[str | None, str]] = Counter()
    for group in description.groups:
        wanted[group.colour, group.shape] += group.count
    if found != wanted:
        return False
    if description.place:
        return len(scene.objects) == 1 and place_of(scene.objects[0]) == description.place
    if description.relation:
        return _related(scene.objects, description)
    return True


def _related(things: tuple[Object, ...], description: Description) -> bool:
    first, second = description.groups
    pairs = [(a, b) for a in things for b in things if a is not b]
    return any(
        relation(a, b) == description.relation
        for a, b in pairs
        if a.shape == first.shape and b.shape == second.shape
        if first.colour in (None, a.colour) and second.colour in (None, b.colour)
    )


def _kinds() -> list[tuple[str, str]]:
    return list(product(COLOURS, SHAPES))


def _compositions(category: str) -> list[Description]:
    """Every statement of a category, in canonical form."""
    kinds = _kinds()
    one = {(c, s): Group(1, s, c) for c, s in kinds}
    if category == "single_object":
        return [Description((Group(1, shape),), place=place) for shape, place in product(SHAPES, PLACES)]
    if category == "two_objects":
        split = [(n, m) for n, m in product((1, 2, 3), repeat=2) if n + m <= 4]
        sorts = product(combinations(SHAPES, 2), split)
        return [Description((Group(n, a), Group(m, b))).canonical() for (a, b), (n, m) in sorts]
    if category == "counting":
        return [Description((Group(n, s, c),)) for n, (c, s) in product((2, 3, 4), kinds)]
    if category == "colors":
        return [Description((group,)) for group in one.values()]
    if category == "position":
        pairs = [(a, b) for a, b in product(kinds, repeat=2) if a != b]
        return [Description((one[a], one[b]), relation=r) for a, b in pairs for r in ("left of", "above")]
    if category == "color_attribution":
        return [Description((one[a], one[b])).canonical() for a, b in combinations(kinds, 2)]
    if category == _PLACED:
        return [Description((group,), place=place) for group, place in product(one.values(), PLACES)]
    raise ValueError(f"unknown category {category!r}; known: {', '.join(CATEGORIES)}")


def _hash_order(text: str) -> bytes:
    return hashlib.sha256(f"held-out shapes:{text}".encode()).digest()


@cache
def _held_out() -> frozenset[Description]:
    """A quarter of each category, and of the single objects at a place, in hash order, taking no word in more than a
    third of the statements that hold it."""
    chosen: set[Description] = set()
    for category in (*CATEGORIES, _PLACED):
        space = sorted(_compositions(category), key=lambda d: _hash_order(phrase(d)))
        total = Counter(word for d in space for word in _factors(d))
        taken: Counter[str] = Counter()
        quota = round(len(space) / 4)
        for description in space:
            words = _factors(description)
            if quota and all(taken[word] + 1 <= math.ceil(total[word] / 3) for word in words):
                chosen.add(description)
                taken.update(words)
                quota -= 1
    return frozenset(chosen)


def _factors(description: Description) -> set[str]:
    words = {w for g in description.groups for w in (g.shape, g.colour or "", COUNTS[g.count - 1])}
    return words | {description.place or "", description.relation or ""} - {""}


def is_held_out(text: str) -> bool:
    """Whether a caption says a held-out prompt, in whatever order or wording."""
    return parse(text).canonical() in _held_out()


def shows_held_out(scene: Scene) -> bool:
    """Whether a scene, as its full caption tells it, is held out."""
    return summarise(scene).canonical() in _held_out()


def training_styles(scene: Scene) -> list[str]:
    """The caption styles that say no held-out prompt about a scene."""
    return [style for style in STYLES if not is_held_out(describe(scene, style))]


def draw_style(scene: Scene, rng: random.Random) -> str:
    """One of a scene's training styles, as often as `STYLES` says."""
    styles = training_styles(scene)
    return rng.choices(styles, [STYLES[style] for style in styles])[0]


def prompts(category: str, held_out: bool) -> list[str]:
    """All prompts of a category, held out or for training, in a fixed mixed order.

    single_object `a circle at the left`; two_objects `a circle and two squares`; counting `three red circles`;
    colors `a red circle`; position `a red circle left of a blue square`; color_attribution `a red circle and a
    blue square`.
    """
    return list(_prompts(category, held_out))


@cache
def _prompts(category: str, held_out: bool) -> tuple[str, ...]:
    texts = {phrase(wording) for d in _compositions(category) for wording in _wordings(d)}
    if held_out:
        kept = [text for text in texts if is_held_out(text)]
    else:
        kept = [text for text in texts if not is_held_out(text)]
    return tuple(sorted(kept, key=_hash_order))


def _wordings(description: Description) -> Iterator[Description]:
    yield description
    if len(description.groups) == 2:
        turned = OPPOSITE[description.relation] if description.relation else None
        yield Description(description.groups[::-1], relation=turned)


def draw_scene(rng: random.Random, held_out: bool | None = False, mix: tuple[int, int, int, int] = MIX) -> Scene:
    """Draw a scene for training, a held-out one, or (None) any.

    `mix` weighs the four kinds: one object at a place, two objects in a relation, two to four equal objects, three or
    four mixed ones.
    """
    while True:
        layouts: tuple[Callable[[random.Random], Scene], ...] = (
            _draw_one,
            _draw_two,
            _draw_same,
            _draw_mixed,
        )
        scene = rng.choices(layouts, mix)[0](rng)
        scene = _as_usual(scene) if rng.random() < _USUAL_SHARE else scene
        fits = all(separate(a, b) for a, b in combinations(scene.objects, 2))
        if fits and held_out in (None, shows_held_out(scene)):
            return scene


def _as_usual(scene: Scene) -> Scene:
    """The scene in usual colours, or as it was where that would make different kinds of objects equal."""
    usual = Scene(tuple(replace(o, colour=USUAL[o.shape]) for o in scene.objects))
    kinds = [{(o.colour, o.shape) for o in s.objects} for s in (scene, usual)]
    return usual if len(kinds[0]) == len(kinds[1]) else scene


def draw_kind(rng: random.Random) -> tuple[str, str]:
    """A colour and a shape."""
    return rng.choice(list(COLOURS)), rng.choice(SHAPES)


def _object(rng: random.Random, kind: tuple[str, str], x: float, y: float, r: float) -> Object:
    low, high = r + _MARGIN, 1 - r - _MARGIN
    return Object(*kind, round(min(max(x, low), high), 4), round(min(max(y, low), high), 4), round(r, 4))


def _spot(rng: random.Random, place: str) -> tuple[float, float]:
    x, y = _SPOTS[place]
    return x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)


def placed(rng: random.Random, kind: tuple[str, str], place: str) -> Object:
    """An object of this colour and shape about there."""
    return _object(rng, kind, *_spot(rng, place), rng.uniform(0.13, 0.18))


def _draw_one(rng: random.Random) -> Scene:
    spot = _spot(rng, rng.choices(PLACES, _PLACE_MIX)[0])
    return Scene((_object(rng, draw_kind(rng), *spot, rng.uniform(0.13, 0.18)),))


def _draw_two(rng: random.Random) -> Scene:
    a, b = draw_kind(rng), draw_kind(rng)
    while b == a:
        b = draw_kind(rng)
    return Scene(_pair(rng, a, b, beside=rng.random() < 0.5))


def _pair(rng: random.Random, a: tuple[str, str], b: tuple[str, str], beside: bool) -> tuple[Object, ...]:
    """Two objects on opposite sides, side by side or one above the other, in either order."""
    near, far = rng.uniform(0.2, 0.32), rng.uniform(0.68, 0.8)
    along = [near, far] if rng.random() < 0.5 else [far, near]
    across = [0.5 + rng.uniform(-0.1, 0.1) for _ in along]
    spots = zip(along, across, strict=True) if beside else zip(across, along, strict=True)
    radii = [rng.uniform(0.12, 0.17) for _ in along]
    kinds_spots_radii = zip((a, b), spots, radii, strict=True)
    return tuple(_object(rng, kind, x, y, r) for kind, (x, y), r in kinds_spots_radii)


def _quarters(rng: random.Random, kinds: list[tuple[str, str]]) -> Scene:
    """Up to four objects, each in a quarter of the picture of its own, in reading order."""
    jitter = [(x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.06, 0.06)) for x, y in _QUARTERS]
    return Scene(
        tuple(_object(rng, k, x, y, rng.uniform(0.11, 0.14)) for k, (x, y) in zip(kinds, jitter, strict=False))
    )


def _draw_same(rng: random.Random) -> Scene:
    kind, count = draw_kind(rng), rng.choice((2, 3, 4))
    if count == 2:
        return Scene(_pair(rng, kind, kind, beside=True))
    return _quarters(rng, [kind] * count)


def _draw_mixed(rng: random.Random) -> Scene:
    if rng.random() < 0.75:
        n, m = rng.choice(((1, 2), (2, 1), (1, 3), (3, 1), (2, 2)))
        return _quarters(rng, [draw_kind(rng)] * n + [draw_kind(rng)] * m)
    shapes = rng.sample(SHAPES, len(SHAPES))
    kinds = [draw_kind(rng) for _ in range(rng.choice((3, 4)))]
    return _quarters(rng, sorted(kinds, key=lambda kind: shapes.index(kind[1])))
