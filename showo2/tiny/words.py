"""The language of the world of shapes: what a caption can say, its words, and how to read it back."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 180),
    "orange": (240, 140, 40),
    "cyan": (60, 190, 200),
    "pink": (240, 130, 180),
}
BACKGROUND = (235, 235, 235)
SHAPES = ("circle", "square", "triangle")
# The colour of a shape that nobody needs to be told.
USUAL = {"circle": "orange", "square": "blue", "triangle": "green"}
PLACES = ("left", "right", "top", "bottom", "centre")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = ("one", "two", "three", "four")
# How often a text of the world is of each style.
STYLES = {"full": 1, "colours": 1, "shapes": 1}
# What a captioner is asked for each style.
CAPTION_PROMPTS = {
    "full": "Describe the picture in full.",
    "colours": "Name the objects and their colours.",
    "shapes": "Name the shapes.",
}


@dataclass(frozen=True)
class Group:
    """`count` objects of one shape and, where it is told, one colour."""

    count: int
    shape: str
    colour: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says: groups in their order; a place (of one object) or a relation (first to second)."""

    groups: tuple[Group, ...]
    place: str | None = None
    relation: str | None = None

    def canonical(self) -> "Description":
        """The same statement in one fixed wording: groups sorted, `right of` and `below` turned around."""
        groups, relation = self.groups, self.relation
        if relation is None:
            groups = tuple(sorted(groups, key=_group_key))
        elif relation in ("right of", "below"):
            groups, relation = groups[::-1], OPPOSITE[relation]
        return Description(groups, self.place, relation)


def _group_key(group: Group) -> tuple[str, str, int]:
    return group.colour or "", group.shape, group.count


def merge(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Add up groups of the same colour and shape, in order of first appearance."""
    counts: Counter[tuple[str | None, str]] = Counter()
    for group in groups:
        counts[group.colour, group.shape] += group.count
    return tuple(Group(count, shape, colour) for (colour, shape), count in counts.items())


def phrase(description: Description) -> str:
    """The words of a description; the inverse of `parse`."""
    parts = [_phrase_group(group) for group in description.groups]
    if description.relation:
        return f"{parts[0]} {description.relation} {parts[1]}"
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{text} at the {description.place}" if description.place else text


def _phrase_group(group: Group) -> str:
    words = f"{group.colour} {group.shape}" if group.colour else group.shape
    if group.count == 1:
        return f"an {words}" if words[0] in "aeiou" else f"a {words}"
    return f"{COUNTS[group.count - 1]} {words}s"


_GROUP = re.compile(rf"(an?|one|two|three|four) (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})s?")
_RELATION = re.compile(rf" ({'|'.join(RELATIONS)}) ")
_PLACE = re.compile(rf" (?:at|in|on) the ({'|'.join(PLACES)})$")


def parse(text: str) -> Description:
    """Read a caption of any style back; ValueError names a text that is no such caption."""
    clean = re.sub(r"[.\s]+$", "", re.sub(r"\s+", " ", text.strip().lower()))
    place = _PLACE.search(clean)
    body = clean[: place.start()] if place else clean
    related = _RELATION.search(body)
    if related:
        phrases = [body[: related.start()], body[related.end() :]]
    else:
        phrases = re.split(r", | and ", body)
    matches = [_GROUP.fullmatch(part) for part in phrases]
    if not all(matches):
        raise ValueError(f"not a caption of the world of shapes: {text!r}")
    groups = tuple(_read_group(match) for match in matches if match)
    return Description(groups, place[1] if place else None, related[1] if related else None)


def _read_group(match: re.Match[str]) -> Group:
    number, colour, shape = match.groups()
    return Group(1 if number in ("a", "an") else COUNTS.index(number) + 1, shape, colour)
