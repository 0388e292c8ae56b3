"""Rules: each drops its victims and nobody else, a missing score drops nobody, and a bad file of rules is named."""

import json

import pyarrow as pa
import pytest

from pipelines.facts import SCHEMA
from pipelines.rules import FACTS, RULES, SCORES, Rules, load_rules, picture_reasons, reasons, scores_needed
from pipelines.sources import InputError
from pipelines.sweep import EDGES, histograms, kept_by_cut, merge

GOOD = {
    "kind": "pair", "text": "an old bridge over a river", "width": 800, "height": 600, "animated": False, "size": 90_000,
    "format": "jpeg", "seconds": None, "language": "en", "contrast": 40.0, "sharpness": 300.0, "text_density": 0.05, "aesthetic": 5.5,
    "watermark": 0.1, "nsfw": 0.02, "similarity": 0.3, "cuts": 0.0, "frozen": 0.1, "motion": 4.0, "pictures": None,
}  # fmt: skip
# What a row of several pictures has none of.
DOCUMENT = {"kind": "document", **dict.fromkeys(("text", "width", "height", "animated", "size", "format"))}
ALL = Rules(
    max_aspect=2.0, max_bytes=10**6, formats=("jpeg", "png"), min_words=2, max_words=50, drop_junk_captions=True,
    languages=("en",), min_contrast=6.0, min_sharpness=20.0, min_text_density=0.01, max_text_density=0.3,
    min_seconds=2.0, max_seconds=600.0, min_motion=1.0, max_motion=20.0, max_cuts=0, max_frozen=0.3,
    min_aesthetic=5.0, max_watermark=0.5, max_nsfw=0.2, min_similarity=0.2,
)  # fmt: skip


def table(*changes: dict) -> pa.Table:
    """One row for each change of a good one."""
    schema = pa.schema([field for field in SCHEMA if field.name in GOOD])
    for name in SCORES:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string() if name == "language" else pa.float32()))
    return pa.Table.from_pylist([{**GOOD, **change} for change in changes], schema)


VICTIMS = {
    "missing_caption": {"text": None},
    "too_small": {"height": 511},
    "animated": {"animated": True},
    "extreme_aspect": {"width": 1300},
    "too_heavy": {"size": 2_000_000},
    "unwanted_format": {"format": "bmp"},
    "video_length": {"kind": "video", "seconds": 1.5},
    "caption_length": {"text": "bridge"},
    "junk_caption": {"text": "click here to see more"},
    "language": {"language": "fr"},
    "uniform": {"contrast": 2.0},
    "blurred": {"sharpness": 5.0},
    "little_text": {"text_density": 0.0},
    "much_text": {"text_density": 0.6},
    "cut": {"cuts": 1.0},
    "frozen": {"frozen": 0.5},
    "still": {"motion": 0.2},
    "restless": {"motion": 60.0},
    "aesthetic": {"aesthetic": 4.9},
    "watermark": {"watermark": 0.9},
    "nsfw": {"nsfw": 0.5},
    "dissimilar": {"similarity": 0.1},
    "too_few_pictures": {**DOCUMENT, "pictures": [{"number": 0, "error": "truncated"}]},
}


def pictures(*changes: dict) -> list[dict]:
    """Good pictures of a document, changed as told."""
    good = {"width": 800, "height": 600, "animated": False, "size": 90_000, "format": "jpeg"}
    return [{"number": number, **good, **change} for number, change in enumerate(changes)]


def test_every_rule_has_a_victim_and_drops_only_that():
    assert list(VICTIMS) == [rule.__name__ for rule in RULES]
    assert reasons(table({}, *VICTIMS.values()), ALL).to_pylist() == [None, *VICTIMS]


def test_a_video_is_held_to_its_caption_and_length():
    changes = ({"text": None}, {"text": "bridge"}, {"text": "DSC00123 456"}, {"seconds": 601.0}, {"seconds": 9.0})
    rows = table(*({"kind": "video", **change} for change in changes))
    assert reasons(rows, ALL).to_pylist() == [
        "missing_caption", "caption_length", "junk_caption", "video_length", None]


def test_the_defaults_are_the_recipes():
    dropped = reasons(table({}, *VICTIMS.values()), Rules()).to_pylist()
    assert {reason for reason in dropped if reason} == {"missing_caption", "too_small", "animated", "too_few_pictures"}
    assert scores_needed(Rules()) == [] and set(scores_needed(ALL)) == set(SCORES)


def test_without_a_score_nobody_is_dropped():
    assert reasons(table(dict.fromkeys(SCORES)), ALL).to_pylist() == [None]
    assert reasons(table({}).select(FACTS), Rules()).to_pylist() == [None]


def test_a_document_loses_its_bad_pictures_and_goes_with_too_few():
    mixed = {**DOCUMENT, "pictures": pictures({}, {"height": 511}, {"error": "truncated", "width": None}, {})}
    short = {**DOCUMENT, "pictures": pictures({}, {"animated": True})}
    rows = table({}, mixed, short)
    assert picture_reasons(rows, Rules()) == [
        {}, {0: None, 1: "too_small", 2: "truncated", 3: None}, {0: None, 1: "animated"}]
    assert reasons(rows, Rules(min_pictures=2)).to_pylist() == [None, None, "too_few_pictures"]
    assert picture_reasons(rows.slice(1, 1), Rules(max_pictures=1))[0][3] == "too_many_pictures"


@pytest.mark.parametrize(
    "text",
    ["IMG_0231.jpg", "DSC00123", "https://example.org/a/b?c=d", "image 12", "2021-03-04", "Untitled", "logo",
     "Click to enlarge", "view full size image", "photo.JPEG", "..."],
)  # fmt: skip
def test_junk(text):
    assert reasons(table({"text": text}), Rules(drop_junk_captions=True)).to_pylist() == ["junk_caption"]


@pytest.mark.parametrize(
    "text",
    [
        "image of a castle",
        "logo of a bakery on a wall",
        "a photo.",
        "Untitled painting by a master",
        "7 cats",
    ],
)
def test_no_junk(text):
    assert reasons(table({"text": text}), Rules(drop_junk_captions=True)).to_pylist() == [None]


def test_rules_of_a_file_stand_over_those_given(tmp_path):
    path = tmp_path / "hq.json"
    path.write_text(json.dumps({"min_side": 768, "formats": ["jpeg"], "max_aspect": 2}))
    assert load_rules(str(path), Rules(min_words=3)) == Rules(768, 2, None, ("jpeg",), 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "hq.json"), ("[]", "not a JSON object"), ('{"min_sid": 1}', "unknown rule min_sid; known: min_side"),
     ('{"min_side": "big"}', 'min_side is "big"'), ('{"min_side": true}', "min_side is true")],
)  # fmt: skip
def test_a_bad_file_is_named(text, message, tmp_path):
    path = tmp_path / "hq.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_rules(str(path), Rules())


def test_a_sweep_says_what_a_threshold_would_keep():
    scores = [{"aesthetic": value} for value in (None, -1.0, 4.4, 4.5, 5.5, 42.0)]
    counts = histograms(table(*scores))["aesthetic"]
    swept = dict(kept_by_cut("aesthetic", merge([{"aesthetic": counts}, {"aesthetic": counts}])["aesthetic"]))
    assert (swept[0.0], swept[4.5], swept[5.0], swept[10.0]) == (10, 6, 4, 2)
    below = dict(kept_by_cut("nsfw", histograms(table({"nsfw": 0.01}, {"nsfw": 0.5}, {"nsfw": 1.0}))["nsfw"]))
    assert (below[0.05], below[0.5], below[0.55], below[float("inf")]) == (1, 1, 2, 3)
    assert set(EDGES) == set(SCORES) - {"language"}
