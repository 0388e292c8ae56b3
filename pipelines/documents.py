"""Interleaved documents: their segments in order, and what of them stays with the pictures that stay.

A document's JSON holds parallel lists, `texts` and `images`, as OmniCorpus and OBELICS have them; its pictures are the
members KEY.0.jpg, KEY.1.jpg and so on of the same sample. Segments are stored as JSON: `[{"text": ...} |
{"image": number of the picture}, ...]`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from pipelines.probe import EXTENSIONS

Segment = dict[str, Any]
Reasons = dict[int, str | None]  # number of a picture -> why it is left out, or None where it stays
TOO_MANY = "too_many_pictures"
_NAME = re.compile(rf"([0-9]{{1,6}})\.(?:{'|'.join(EXTENSIONS)})")


def picture_number(extension: str) -> int | None:
    """Of a member's extension such as `3.jpg` the number; None for other members."""
    match = _NAME.fullmatch(extension)
    return int(match[1]) if match else None


def read_segments(value: dict[str, Any], key: str, clean: Callable[[str], str]) -> list[Segment]:
    """The segments that a document's JSON tells of; where an entry has a text and a picture, the text comes first.

    An entry of `images` that is a member's name (`3.jpg`, `KEY.3.jpg`) is that picture; of all others, such as links,
    the j-th that is not null is picture j. Raises ValueError where the lists are not as they should be.
    """
    texts, images = value.get("texts"), value.get("images")
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise ValueError("texts and images are not two lists of the same length")
    if strange := [entry for entry in (*texts, *images) if not isinstance(entry, str | None)]:
        raise ValueError(f"an entry is neither a string nor null: {str(strange[0])[:40]}")
    segments: list[Segment] = []
    count = 0
    for text, image in zip(texts, images, strict=True):
        if text and (text := clean(text)):
            segments.append({"text": text})
        if image:
            named = picture_number(image.removeprefix(f"{key.rpartition('/')[2]}.").lower())
            segments.append({"image": count if named is None else named})
            count += 1
    if not segments:
        raise ValueError("there is neither a text nor a picture")
    return segments


def numbers(segments: list[Segment]) -> list[int]:
    """The pictures that segments name, each once, in order."""
    return list(dict.fromkeys(segment["image"] for segment in segments if "image" in segment))


def told(messages: str, reasons: Reasons) -> str:
    """Segments as a shard holds them: the pictures that stay, numbered anew, with the texts around them joined.

    A document with too many pictures ends before the first of these.
    """
    frames = {number: frame for frame, number in enumerate(n for n, why in reasons.items() if why is None)}
    segments: list[Segment] = []
    for segment in json.loads(messages):
        if "image" not in segment:
            if segments and "text" in segments[-1]:
                segment = {"text": f"{segments.pop()['text']}\n\n{segment['text']}"}
            segments.append(segment)
        elif segment["image"] in frames:
            segments.append({"image": frames[segment["image"]]})
        elif reasons[segment["image"]] == TOO_MANY:
            break
    return json.dumps(segments, ensure_ascii=False)


def describe_losses(reasons: Reasons) -> str | None:
    """A line for the ledger: how many of a document's pictures are left out, and why; None where all stay."""
    lost = Counter(why for why in reasons.values() if why is not None)
    if not lost:
        return None
    by_reason = ", ".join(f"{why} {count}" for why, count in sorted(lost.items()))
    return f"without {lost.total()} of {len(reasons)} pictures: {by_reason}"
