"""Documents and texts as facts: segments in order, every picture's header, and what is wrong named by key."""

import io
import json

import pytest

from jobs import _check
from pipelines.documents import read_segments, told
from pipelines.facts import Limits, read_facts
from pipelines.presets import PRESETS
from pipelines.publish import Unit
from tests.pipelines.conftest import picture, write_tar
from tests.pipelines.test_facts import TURNS, archive, facts, jpeg

LINKS = ["https://example.org/7.jpg", None, "https://example.org/8.jpg"]
WEB = {"texts": [None, " A dog wakes. ", None], "images": LINKS}  # as OmniCorpus and OBELICS have it
STORY = {"texts": ["It runs.", "It sleeps."], "images": ["0.jpg", "1.jpg"]}  # a sentence a photo, as VIST has it


def document(value: dict, *pictures: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    """The members of a sample with key d."""
    return [*((f"d.{name}", data) for name, data in pictures), ("d.json", json.dumps(value).encode())]


def segments(value: dict) -> list[dict]:
    return read_segments(value, "a/d", str.strip)


def test_segments_stand_in_order():
    assert segments(WEB) == [{"image": 0}, {"text": "A dog wakes."}, {"image": 1}]
    assert segments(STORY) == [{"text": "It runs."}, {"image": 0}, {"text": "It sleeps."}, {"image": 1}]


def test_a_picture_that_is_named_is_that_one():
    assert segments({"texts": [None] * 3, "images": ["1.jpg", "d.0.png", "1.jpg"]}) == [
        {"image": 1}, {"image": 0}, {"image": 1}]
    assert segments({"texts": [None] * 2, "images": ["a/5.jpg", "x.5.jpg"]}) == [{"image": 0}, {"image": 1}]


@pytest.mark.parametrize(
    ("value", "message"),
    [({"texts": ["a"], "images": []}, "same length"), ({"texts": "a", "images": ["x"]}, "same length"),
     ({"texts": [None], "images": [{"url": "x"}]}, "neither a string nor null"),
     ({"texts": [" "], "images": [None]}, "neither a text nor a picture")],
)  # fmt: skip
def test_lists_that_are_no_document(value, message):
    with pytest.raises(ValueError, match=message):
        segments(value)


def test_what_stays_is_numbered_anew_and_texts_are_joined():
    messages = json.dumps([{"text": "a"}, {"image": 3}, {"text": "b"}, {"image": 0}, {"text": "c"}, {"image": 3}])
    assert json.loads(told(messages, {3: None, 0: None})) == [
        {"text": "a"}, {"image": 0}, {"text": "b"}, {"image": 1}, {"text": "c"}, {"image": 0}]
    assert json.loads(told(messages, {3: None, 0: "too_small"})) == [
        {"text": "a"}, {"image": 0}, {"text": "b\n\nc"}, {"image": 0}]
    assert json.loads(told(messages, {3: None, 0: "too_many_pictures"})) == [
        {"text": "a"}, {"image": 0}, {"text": "b"}]


def test_a_document_has_the_facts_of_all_its_pictures():
    data = archive(document(WEB, ("1.jpg", jpeg(1)), ("0.jpg", jpeg(0))))
    (row,) = facts(data)
    assert (row["kind"], row["error"], row["text"], row["width"]) == ("document", None, None, None)
    assert json.loads(row["messages"]) == segments(WEB)
    for number, found in enumerate(row["pictures"]):
        assert data[found["offset"] : found["offset"] + found["size"]] == jpeg(number)
        assert (found["number"], found["width"], found["height"], found["error"]) == (number, 20, 10, None)


def test_a_bad_picture_is_its_own_and_not_the_documents():
    (row,) = facts(document({"texts": [None] * 4, "images": ["a", "b", "c", "d"]}, ("0.jpg", jpeg()[:-40]),
                            ("1.jpg", jpeg()), ("3.png", b"<html>")))  # fmt: skip
    assert row["error"] is None
    assert [found["error"] for found in row["pictures"]] == ["truncated", None, "missing_picture", "not_an_image"]
    small = facts(document(WEB, ("0.jpg", jpeg()), ("1.jpg", jpeg())), Limits(max_picture_bytes=200))
    assert [found["error"] for found in small[0]["pictures"]] == ["file_too_large"] * 2


@pytest.mark.parametrize(
    ("members", "error"),
    [(document({"texts": ["a"], "images": []}, ("0.jpg", jpeg())), "bad_document"),
     ([("d.0.jpg", jpeg()), ("d.1.jpg", jpeg())], "bad_document"),
     ([("d.0.jpg", jpeg()), ("d.json", b"{broken"), ("d.txt", b"a caption")], "bad_json"),
     (document({"texts": ["x" * (2 << 20)], "images": ["x"]}, ("0.jpg", jpeg())), "text_too_large"),
     (document(STORY, *((f"{n}.jpg", jpeg()) for n in (1, 2))), "unnamed_picture"),
     (document(STORY, ("jpg", jpeg()), ("0.jpg", jpeg())), "unnamed_picture"),
     (document(STORY, ("0.jpg", jpeg()), ("0.png", jpeg())), "duplicate_member"),
     (document(STORY, ("0.jpg", jpeg()), ("../../1.jpg", jpeg())), None)],
)  # fmt: skip
def test_what_is_wrong_with_a_whole_document(members, error):
    rows = [row for row in facts(members) if row["key"] == "d"]
    assert [row["error"] for row in rows] == [error]


def test_a_cut_costs_the_document_that_it_goes_through():
    one, two = (document(STORY, ("0.jpg", jpeg(n)), ("1.jpg", jpeg(n + 1))) for n in (0, 5))
    data = archive([*one, *((name.replace("d.", "e."), part) for name, part in two)])
    (_, last) = facts(data)
    cut = facts(data[: last["pictures"][1]["offset"] + 9])
    assert [(row["key"], row["error"]) for row in cut] == [("d", None), ("e", "tar_cut")]
    # Between members, with a picture and the JSON still to come; and behind the last one.
    cut = facts(data[: last["pictures"][1]["offset"] - 512])
    assert [(row["key"], row["error"]) for row in cut] == [("d", None), ("e", "tar_cut")]
    whole = facts(data.rstrip(b"\0") + bytes(512 - len(data.rstrip(b"\0")) % 512))
    assert [row["error"] for row in whole] == [None, None, "tar_no_end"]


def test_equal_documents_are_equal_by_what_they_hold():
    def same(value: dict, *seeds: int) -> str:
        (row,) = facts(document(value, *((f"{n}.jpg", jpeg(seed)) for n, seed in enumerate(seeds))))
        return row["same"]

    assert same(STORY, 1, 2) == same(STORY, 1, 2) != same(STORY, 2, 1)
    assert same(STORY, 1, 2) != same({**STORY, "texts": ["It runs.", "It eats."]}, 1, 2)


def texts(*members: tuple[str, bytes]) -> list[dict]:
    """Facts of a source of texts."""
    return read_facts(io.BytesIO(archive([*members])), Unit("t", "/t.tar"), Limits(), PRESETS["text"]).to_pylist()


def test_texts_alone_are_texts_where_their_source_is_one_of_texts():
    said = json.dumps({"text": "from json"}).encode()
    rows = texts(("a.txt", b" just words \n"), ("b.json", said), ("c.txt", b" "), ("e.jpg", jpeg()), ("e.txt", b"e"))
    assert [(row["kind"], row["text"], row["error"]) for row in rows] == [
        ("text", "just words", None), ("text", "from json", None), ("text", None, "missing_text"), ("pair", "e", None)]
    assert rows[0]["same"] != rows[1]["same"] and texts(("x.txt", b"from json"))[0]["same"] == rows[1]["same"]
    assert texts(("x.txt", b"x" * (2 << 20)))[0]["error"] == "text_too_large"
    assert facts([("a.txt", b"just words")])[0]["error"] == "missing_image"


def test_a_conversation_that_asks_of_no_picture_needs_none():
    plain = [{"from": "human", "value": "colour of snow?"}, {"from": "gpt", "value": "white"}]
    for turns, kind, error in ((plain, "text", None), (TURNS, "conversation", "missing_image")):
        (row,) = facts([("a.json", json.dumps({"conversations": turns}).encode())])
        assert (row["kind"], row["error"]) == (kind, error)
    (row,) = facts([("a.jpg", jpeg()), ("a.json", json.dumps({"conversations": plain}).encode())])
    assert row["kind"] == "conversation"


def test_the_validator_names_bad_documents_and_bad_pictures(tmp_path, capsys):
    good = document(STORY, ("0.jpg", picture(1)), ("1.jpg", picture(2)))
    write_tar(tmp_path / "0.tar", good)
    assert _check.main(["--check", str(tmp_path)]) == 0
    assert "1 documents; 0 bad" in capsys.readouterr().out
    bad = [("e.0.jpg", picture(3)[:-40]), ("e.1.jpg", picture(4)), ("e.json", json.dumps(WEB).encode()),
           ("f.0.jpg", picture(5)), ("f.json", json.dumps(STORY).encode()), ("g.0.jpg", picture(6))]  # fmt: skip
    write_tar(tmp_path / "1.tar", bad)
    assert _check.main(["--check", f"mine:omnicorpus={tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert "e.0: truncated (" in out and "f.1: missing_picture (not in the tar); the document keeps its text" in out
    assert "g: bad_document (1 pictures, and no JSON" in out and "4 documents; 3 bad" in out
    write_tar(tmp_path / "texts.tar", [("a.txt", b"words"), ("b.json", b"{}")])
    assert _check.main(["--check", f"t:text={tmp_path}/texts.tar"]) == 1
    assert "b: missing_text (members: json); add KEY.txt" in capsys.readouterr().out
