"""Questions about scenes and clips of the world of shapes, each with one right answer of a word or two."""

import random
from collections import Counter
from collections.abc import Iterator

from showo2.tiny.moving import Motion
from showo2.tiny.words import COLOURS, COUNTS, OPPOSITE, SHAPES
from showo2.tiny.world import Scene, place_is_clear, place_of, summarise

PLACE_OPENINGS = ("where ", "is ")  # of questions for where something is or moves, or how two things lie
NUMBER_OPENINGS = ("how many ",)


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Every question about a scene that has one right answer of a word or two, with it, in random order."""
    asked = [
        *_colour_questions(scene),
        *_shape_questions(scene),
        *_place_questions(scene),
        *_count_questions(scene),
    ]
    asked += _relation_questions(scene, rng)
    rng.shuffle(asked)
    return asked


def motion_questions(motion: Motion, rng: random.Random) -> list[tuple[str, str]]:
    """The same about a clip: where its object moves, its colour and its shape."""
    scene = motion.at(0.5)
    (thing,) = scene.objects
    asked = [(f"where does the {thing.shape} move?", motion.direction), *_colour_questions(scene), *_shape_questions(scene)]
    rng.shuffle(asked)
    return asked


def untold(asked: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A conversation without questions for a look that was named before, a second place or a second number: who can read
    does not look.

    "where is the red circle?" tells the circle's colour and the red object's shape, and its answer where all else is; the
    number of circles bounds that of objects. What names a shape alone ("how many circles are there?") names no look.
    """
    kept: list[tuple[str, str]] = []
    named: set[tuple[str, str]] = set()
    for question, answer in asked:
        words = [word.rstrip("?s") for word in f"{question} {answer}".split()]
        looks = set(zip([w for w in words if w in COLOURS], [w for w in words if w in SHAPES], strict=False))
        alike = next((topic for topic in (PLACE_OPENINGS, NUMBER_OPENINGS) if question.startswith(topic)), None)
        if alike:
            told = any(before.startswith(alike) for before, _ in kept)
        else:
            told = bool(looks) and looks <= named
        if not told:
            kept.append((question, answer))
            named |= looks
    return kept


def _colour_questions(scene: Scene) -> Iterator[tuple[str, str]]:
    for shape in SHAPES:
        colours = [o.colour for o in scene.objects if o.shape == shape]
        if len(set(colours)) == 1:
            yield (
                (f"what colour is the {shape}?" if len(colours) == 1 else f"what colour are the {shape}s?"),
                colours[0],
            )


def _shape_questions(scene: Scene) -> Iterator[tuple[str, str]]:
    for colour in COLOURS:
        shapes = [o.shape for o in scene.objects if o.colour == colour]
        if len(set(shapes)) == 1:
            ask = (
                f"what shape is the {colour} object?"
                if len(shapes) == 1
                else f"what shape are the {colour} objects?"
            )
            yield ask, shapes[0]


def _place_questions(scene: Scene) -> Iterator[tuple[str, str]]:
    if len(scene.objects) > 2 or len(summarise(scene, "colours").groups) < len(scene.objects):
        return
    for thing in scene.objects:
        if place_is_clear(thing):
            yield f"where is the {thing.colour} {thing.shape}?", place_of(thing)


def _count_questions(scene: Scene) -> Iterator[tuple[str, str]]:
    counts = Counter(o.shape for o in scene.objects)
    for shape, count in counts.items():
        yield f"how many {shape}s are there?", COUNTS[count - 1]
    if len(counts) > 1:
        yield "how many objects are there?", COUNTS[len(scene.objects) - 1]


def _relation_questions(scene: Scene, rng: random.Random) -> Iterator[tuple[str, str]]:
    told = summarise(scene)
    if not told.relation:
        return
    first, second = (f"the {group.colour} {group.shape}" for group in told.groups)
    yield f"is {first} {told.relation} {second}?", "yes"
    yield f"is {first} {OPPOSITE[told.relation]} {second}?", "no"
