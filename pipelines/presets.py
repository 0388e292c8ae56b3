"""The recipe's data sets as presets: where the caption stands, what the scores are called, how the text is cleaned.

`--source NAME:PRESET=PATH` reads a source as its preset says; without one, as img2dataset writes it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.measures import plain_text


@dataclass(frozen=True)
class Preset:
    """`captions`: JSON fields, of which the first that holds a text is the caption where there is no .txt.
    `scores`: ours -> the JSON field. `licence`: what the publisher says, to be read before use. `kind`: what it holds;
    only in a source of texts is a sample without a picture a text, elsewhere it has lost its picture."""

    kind: str  # pairs | conversations | videos | documents | texts
    licence: str
    captions: tuple[str, ...] = ("caption",)
    scores: dict[str, str] = field(default_factory=dict)
    clean: Callable[[str], str] = str.strip


def without_person(text: str) -> str:
    """CC12M writes <PERSON> where a name stood."""
    return plain_text(text).replace("<PERSON>", "a person")


_COYO = {"aesthetic": "aesthetic_score_laion_v2", "watermark": "watermark_score", "similarity": "clip_similarity_vitb32",
         "nsfw": "nsfw_score_opennsfw2"}  # fmt: skip
_LAION = {
    "aesthetic": "AESTHETIC_SCORE",
    "watermark": "pwatermark",
    "similarity": "similarity",
    "nsfw": "punsafe",
}
_BY_LINK = "pictures belong to their sites"

PRESETS = {
    "img2dataset": Preset("pairs", "that of the source"),
    "cc12m": Preset("pairs", f"list free to use with credit to Google; {_BY_LINK}", ("caption",), clean=without_person),
    "coyo": Preset("pairs", f"list CC-BY-4.0; {_BY_LINK}", ("caption", "text"), _COYO, plain_text),
    "laion_aesthetic": Preset("pairs", f"list CC-BY-4.0; {_BY_LINK}", ("caption", "TEXT"), _LAION, plain_text),
    "synthetic": Preset("pairs", "that of the generator's terms", ("caption", "prompt"), clean=plain_text),
    "textatlas": Preset("pairs", "MIT, parts differ: see its card", ("caption", "annotation"), clean=plain_text),
    "densefusion": Preset("pairs", f"captions CC-BY-4.0; {_BY_LINK}", ("caption",), clean=plain_text),
    "llava": Preset("conversations", "CC-BY-4.0 and OpenAI's terms of use"),
    "openvid": Preset("videos", "CC-BY-4.0; videos as their sites say", ("caption",), {"aesthetic": "aesthetic score"}),
    "panda": Preset("videos", "research only; videos belong to YouTube's authors", ("caption",), {"similarity": "matching_score"}),
    "omnicorpus": Preset("documents", f"CC-BY-4.0; {_BY_LINK}"),
    "vist": Preset("documents", "research only; pictures are Flickr's"),
    "text": Preset("texts", "that of the source", ("text",)),
}  # fmt: skip
