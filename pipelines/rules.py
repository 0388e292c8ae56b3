"""Rules: each looks at facts and scores and says which rows to drop; its name is the reason in the ledger.

A threshold that is None leaves its rule out, and a row without the score that a rule looks at is not dropped by it.
The defaults are the recipe's: both sides at least 512 pixels, a caption, no animation.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import document_pictures
from pipelines.documents import TOO_MANY, Reasons
from pipelines.sources import InputError


@dataclass(frozen=True)
class Rules:
    """Thresholds, in the order of the rules."""

    min_side: int = 512
    """Least width and least height, pixels."""
    max_aspect: float | None = None
    """Most that the longer side may be of the shorter."""
    max_bytes: int | None = None
    """Most bytes of the encoded picture."""
    formats: tuple[str, ...] | None = None
    """Formats that are kept, for example jpeg png webp."""
    min_words: int | None = None
    max_words: int | None = None
    """Words of the caption of a picture or video."""
    drop_junk_captions: bool = False
    """Drop alt texts that say nothing: file names, URLs, dates, "image 12", calls to click."""
    languages: tuple[str, ...] | None = None
    """ISO 639-1 codes of the captions that are kept. Needs --score text."""
    min_contrast: float | None = None
    """Least standard deviation of brightness (0 to 255); a uniform picture has 0. Needs --score pixels."""
    min_sharpness: float | None = None
    """Least variance of the Laplacian at 256 pixels a side. Needs --score pixels."""
    min_text_density: float | None = None
    max_text_density: float | None = None
    """Share of the picture (0 to 1) that looks like writing. Needs --score pixels."""
    min_aesthetic: float | None = None
    """On the scale of the source, or of --score aesthetic=MODEL:LABEL."""
    max_watermark: float | None = None
    """Probability, of the source or of --score watermark=MODEL:LABEL."""
    max_nsfw: float | None = None
    """Probability, of the source or of --score nsfw."""
    min_similarity: float | None = None
    """Cosine of picture and caption, of the source or of --score similarity=MODEL."""
    min_seconds: float | None = None
    max_seconds: float | None = None
    """Length of a video."""
    min_motion: float | None = None
    max_motion: float | None = None
    """Mean change of a video's brightness (0 to 255) from frame to frame, an eighth of a second later. Needs --score video."""
    max_cuts: int | None = None
    """Cuts in a video's windows of two seconds, eight at most. Needs --score video."""
    max_frozen: float | None = None
    """Share (0 to 1) of a video's frames that repeat the one before. Needs --score video."""
    min_pictures: int = 1
    """Pictures that a document must have left; its others are left out by the rules that look at a picture alone."""
    max_pictures: int = 8
    """Most pictures of a document: a longer one ends before its next."""


JUNK = (
    r"(?i)^\W*("
    r"(https?://|www\.)\S+"
    r"|\S+\.(jpe?g|png|gif|webp|bmp|tiff?|svg|html?|php)"
    r"|(img|dsc[nf]?|image|photo|picture|pic|screenshot|untitled|thumbnail|logo|banner|icon|default)?[\W\d_]*"
    r"|(click|tap) (here )?(to|for) .*"
    r"|(view|read|show|see|load) (full size|more|larger|image|details).*"
    r")\W*$"
)


def missing_caption(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures and videos without a text, or with an empty one."""
    return pc.and_(_captioned(rows), pc.is_null(rows["text"]))


def too_small(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures with a side shorter than `min_side`."""
    return pc.less(pc.min_element_wise(rows["width"], rows["height"]), rules.min_side)


def animated(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures of several frames."""
    return rows["animated"]


def extreme_aspect(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures whose longer side is more than `max_aspect` times the shorter."""
    longer = pc.max_element_wise(rows["width"], rows["height"])
    shorter = pc.cast(pc.min_element_wise(rows["width"], rows["height"]), pa.float64())
    return _above(pc.divide(longer, shorter), rules.max_aspect)


def too_heavy(rows: pa.Table, rules: Rules) -> pa.Array:
    """Files of more than `max_bytes`."""
    return _above(rows["size"], rules.max_bytes)


def unwanted_format(rows: pa.Table, rules: Rules) -> pa.Array:
    """Formats that are not in `formats`."""
    return _outside(rows["format"], rules.formats)


def caption_length(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures and videos whose caption has fewer than `min_words` or more than `max_words`."""
    words = pc.count_substring_regex(rows["text"], r"\S+")
    wrong = pc.or_(
        pc.fill_null(_below(words, rules.min_words), False),
        pc.fill_null(_above(words, rules.max_words), False),
    )
    return pc.and_(_captioned(rows), wrong)


def junk_caption(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures and videos whose alt text says nothing about them."""
    if not rules.drop_junk_captions:
        return _none(rows["text"])
    return pc.and_(_captioned(rows), pc.match_substring_regex(rows["text"], JUNK))


def language(rows: pa.Table, rules: Rules) -> pa.Array:
    """Captions in a language that is not in `languages`."""
    return _outside(rows["language"], rules.languages) if rules.languages else _none(rows["text"])


def uniform(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures that are nearly of one brightness."""
    return _scored(rows, "contrast", _below, rules.min_contrast)


def blurred(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures without sharp edges."""
    return _scored(rows, "sharpness", _below, rules.min_sharpness)


def little_text(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures with too little writing, for text-rich sets such as TextAtlas."""
    return _scored(rows, "text_density", _below, rules.min_text_density)


def much_text(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures with too much writing."""
    return _scored(rows, "text_density", _above, rules.max_text_density)


def aesthetic(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures that a model of taste likes less than `min_aesthetic`."""
    return _scored(rows, "aesthetic", _below, rules.min_aesthetic)


def watermark(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures that probably carry a watermark."""
    return _scored(rows, "watermark", _above, rules.max_watermark)


def nsfw(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures that are probably not safe for work."""
    return _scored(rows, "nsfw", _above, rules.max_nsfw)


def dissimilar(rows: pa.Table, rules: Rules) -> pa.Array:
    """Pictures that do not look like their caption."""
    return _scored(rows, "similarity", _below, rules.min_similarity)


def video_length(rows: pa.Table, rules: Rules) -> pa.Array:
    """Videos shorter than `min_seconds` or longer than `max_seconds`."""
    short, long = _below(rows["seconds"], rules.min_seconds), _above(rows["seconds"], rules.max_seconds)
    return pc.or_(pc.fill_null(short, False), pc.fill_null(long, False))


def cut(rows: pa.Table, rules: Rules) -> pa.Array:
    """Videos with too many cuts."""
    return _scored(rows, "cuts", _above, rules.max_cuts)


def frozen(rows: pa.Table, rules: Rules) -> pa.Array:
    """Videos that stand for too long."""
    return _scored(rows, "frozen", _above, rules.max_frozen)


def still(rows: pa.Table, rules: Rules) -> pa.Array:
    """Videos in which too little moves."""
    return _scored(rows, "motion", _below, rules.min_motion)


def restless(rows: pa.Table, rules: Rules) -> pa.Array:
    """Videos in which too much changes from frame to frame."""
    return _scored(rows, "motion", _above, rules.max_motion)


def too_few_pictures(rows: pa.Table, rules: Rules) -> pa.Array:
    """Documents that have fewer than `min_pictures` left."""
    if rows["pictures"].null_count == len(rows):
        return _none(rows["kind"])
    left = [sum(why is None for why in reasons.values()) for reasons in picture_reasons(rows, rules)]
    return pc.and_(pc.equal(rows["kind"], "document"), pc.less(pa.array(left, pa.int32()), rules.min_pictures))


# In this order: a row is dropped for the first that applies, and a picture of a document is left out for it.
_Rules = tuple[Callable[[pa.Table, Rules], pa.Array], ...]
_HEADERS: _Rules = (too_small, animated, extreme_aspect, too_heavy, unwanted_format)
_LOOKS: _Rules = (uniform, blurred, little_text, much_text)
_MODELS: _Rules = (aesthetic, watermark, nsfw)
PICTURE_RULES: _Rules = (*_HEADERS, *_LOOKS, *_MODELS)
RULES: _Rules = (
    missing_caption, *_HEADERS, video_length, caption_length, junk_caption, language, *_LOOKS, cut, frozen, still, restless,
    *_MODELS, dissimilar, too_few_pictures,
)  # fmt: skip
# What rules look at besides scores.
FACTS = ("kind", "text", "width", "height", "animated", "size", "format", "seconds", "pictures")
# Score -> the thresholds on it.
SCORES = {
    "language": ("languages",),
    "contrast": ("min_contrast",),
    "sharpness": ("min_sharpness",),
    "text_density": ("min_text_density", "max_text_density"),
    "cuts": ("max_cuts",),
    "frozen": ("max_frozen",),
    "motion": ("min_motion", "max_motion"),
    "aesthetic": ("min_aesthetic",),
    "watermark": ("max_watermark",),
    "nsfw": ("max_nsfw",),
    "similarity": ("min_similarity",),
}


def scores_needed(rules: Rules) -> list[str]:
    """The scores that have a threshold."""
    return [
        score for score, names in SCORES.items() if any(getattr(rules, name) is not None for name in names)
    ]


def reasons(rows: pa.Table, rules: Rules) -> pa.Array:
    """For each row of facts and scores the name of the first rule that drops it, or null."""
    return _first(RULES, rows, rules)


def picture_reasons(rows: pa.Table, rules: Rules) -> list[Reasons]:
    """For each row, of a document's pictures in order, why each is left out; nothing for other rows.

    A picture with an error is left out for that, and of those that the rules keep all behind the first `max_pictures`.
    """
    result: list[Reasons] = [{} for _ in range(len(rows))]
    if rows["pictures"].null_count == len(rows):
        return result
    parents, flat = document_pictures.flat(rows["pictures"])
    for score in SCORES.keys() - {*flat.column_names}:
        flat = flat.append_column(score, pa.nulls(len(flat), pa.float32()))
    why = pc.coalesce(flat["error"], _first(PICTURE_RULES, flat, rules))
    for row, number, reason in zip(
        parents.tolist(), flat["number"].to_pylist(), why.to_pylist(), strict=True
    ):
        full = reason is None and sum(w is None for w in result[row].values()) == rules.max_pictures
        result[row][number] = TOO_MANY if full else reason
    return result


def _first(
    some: Iterable[Callable[[pa.Table, Rules], pa.Array]], rows: pa.Table, rules: Rules
) -> pa.Array:
    """The name of the first of these rules that applies, row by row, or null."""
    result = pa.nulls(len(rows), pa.string())
    for rule in reversed([*some]):
        victims = pc.fill_null(rule(rows, rules), False)
        result = pc.if_else(victims, rule.__name__, result)
    return result.combine_chunks() if isinstance(result, pa.ChunkedArray) else result


def load_rules(path: str | None, given: Rules) -> Rules:
    """The thresholds of a JSON file {"min_side": 768, ...}, over those `given`. InputError names a bad file or key."""
    if path is None:
        return given
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--rules {path}: {error}") from error
    known = {field.name: field.type for field in fields(Rules)}
    if not isinstance(values, dict) or (unknown := sorted(values.keys() - known.keys())):
        wrong = f"unknown rule {', '.join(unknown)}" if isinstance(values, dict) else "not a JSON object"
        raise InputError(f"--rules {path}: {wrong}; known: {', '.join(known)}")
    return Rules(
        **{
            **asdict(given),
            **{name: _typed(path, name, known[name], value) for name, value in values.items()},
        }
    )


def _typed(path: str, name: str, wanted: Any, value: Any) -> Any:
    """`value` if it is of the field's type."""
    value = tuple(value) if isinstance(value, list) else value
    accepted = {
        int: (int,),
        bool: (bool,),
        int | None: (int, type(None)),
        float | None: (int, float, type(None)),
    }
    kinds = accepted.get(wanted, (tuple, type(None)))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise InputError(
            f"--rules {path}: {name} is {json.dumps(value)}; it takes {getattr(wanted, '__name__', wanted)}"
        )
    return value


def _captioned(rows: pa.Table) -> pa.Array:
    return pc.is_in(rows["kind"], pa.array(["pair", "video"]))


def _none(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([False] * len(column))


def _below(values: pa.Array, least: float | None) -> pa.Array:
    return _none(values) if least is None else pc.less(values, least)


def _above(values: pa.Array, most: float | None) -> pa.Array:
    return _none(values) if most is None else pc.greater(values, most)


def _outside(values: pa.Array, wanted: Iterable[str] | None) -> pa.Array:
    if wanted is None:
        return _none(values)
    return pc.and_(pc.is_valid(values), pc.invert(pc.is_in(values, pa.array(sorted(wanted), pa.string()))))


def _scored(
    rows: pa.Table, score: str, compare: Callable[[pa.Array, float | None], pa.Array], threshold: float | None
) -> pa.Array:
    return _none(rows.column(0)) if threshold is None else compare(rows[score], threshold)
