"""The facts of a unit: every sample has a row, whatever is wrong with it, and no damage goes unaccounted."""

import io
import json
import tarfile

import pytest
from PIL import Image

from pipelines.facts import SCHEMA, Limits, read_facts, uid_of, write_parquet
from pipelines.publish import Unit
from tests.pipelines.videos import CARPHONE

UNIT = Unit("web", "/data/00000.tar")
TURNS = [{"from": "human", "value": "<image>\nwhat colour?"}, {"from": "gpt", "value": "red"}]


def jpeg(seed: int = 0, **options) -> bytes:
    """A small JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (seed, 0, 0)).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def archive(members: list[tuple[str, bytes]]) -> bytes:
    """A tar of the given members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def facts(members: list[tuple[str, bytes]] | bytes, limits: Limits | None = None) -> list[dict]:
    """Rows of a tar."""
    data = members if isinstance(members, bytes) else archive(members)
    return read_facts(io.BytesIO(data), UNIT, limits or Limits()).to_pylist()


def error(*members: tuple[str, bytes]) -> str | None:
    """The class of the only row."""
    (row,) = facts(list(members))
    return row["error"]


def test_a_good_pair():
    data = archive(
        [("a/0.jpg", jpeg()), ("a/0.txt", " größer \n".encode()), ("a/0.json", b'{"caption": "other"}')]
    )
    (row,) = facts(data)
    assert row["uid"] == uid_of("web", "a/0") and len(row["uid"]) == 32
    assert (row["text"], row["width"], row["height"], row["format"]) == ("größer", 20, 10, "jpeg")
    assert data[row["offset"] : row["offset"] + row["size"]] == jpeg()
    assert row["error"] is None and row["kind"] == "pair" and row["same"] == row["hash"]


def test_caption_from_json_where_there_is_no_text():
    (row,) = facts([("0.jpg", jpeg()), ("0.json", json.dumps({"caption": "from json"}).encode())])
    assert row["text"] == "from json"


def test_conversations_of_one_picture_are_no_duplicates_of_each_other():
    other = json.dumps({"conversations": [TURNS[0], {"from": "gpt", "value": "blue"}]}).encode()
    same = json.dumps({"conversations": TURNS}).encode()
    members = [
        (f"{i}.{e}", d) for i, j in enumerate((same, same, other)) for e, d in (("jpg", jpeg()), ("json", j))
    ]
    rows = facts(members)
    assert [row["kind"] for row in rows] == ["conversation"] * 3
    assert json.loads(rows[0]["messages"]) == TURNS
    assert rows[0]["same"] == rows[1]["same"] != rows[2]["same"] != rows[0]["hash"]


@pytest.mark.parametrize("token", ["image", "video"])
def test_a_conversation_about_a_video(token):
    turns = [{"from": "human", "value": f"<{token}>\nwho talks?"}, {"from": "gpt", "value": "a man"}]
    told = json.dumps({"conversations": turns}).encode()
    film, alone = facts([("0.mp4", CARPHONE.read_bytes()), ("0.json", told), ("1.json", told)])
    assert (film["kind"], film["error"]) == ("video_conversation", None) and film["seconds"] > 2
    assert json.loads(film["messages"]) == turns and film["same"] != film["hash"]
    assert (alone["kind"], alone["error"]) == ("conversation", "missing_image")


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (("0.txt", b"caf\xe9"), "caption_encoding"),
        (("0.json", b"{broken"), "bad_json"),
        (("0.json", b'{"caption": "\\ud800"}'), "bad_json"),
        (("0.json", b'{"conversations": []}'), "bad_conversation"),
        (("0.json", b'{"conversations": [{"from": "cat", "value": "meow"}]}'), "bad_conversation"),
        (("0.json", b"[" * 100_000), "bad_json"),
        (("0.png", jpeg()), "several_pictures"),
        (("0.txt", b"x" * (2 << 20)), "text_too_large"),
    ],
)
def test_classes(member, name):
    assert error(("0.jpg", jpeg()), member) == name


def test_broken_json_beside_a_good_text_is_no_error():
    assert error(("0.jpg", jpeg()), ("0.txt", b"fine"), ("0.json", b"{broken")) is None


def test_missing_image_and_duplicate_member_and_unsafe_name():
    assert error(("0.txt", b"alone")) == "missing_image"
    assert error(("0.jpg", jpeg()), ("0.jpg", jpeg(9)), ("0.txt", b"t")) == "duplicate_member"
    assert error(("../0.jpg", jpeg()), ("../0.txt", b"t")) == "unsafe_name"


def test_too_large_for_the_budget():
    members = [("0.jpg", jpeg()), ("0.txt", b"t")]
    assert facts(members, Limits(max_picture_bytes=100))[0]["error"] == "file_too_large"
    assert facts(members, Limits(max_pixels=199))[0]["error"] == "too_many_pixels"


def test_members_of_a_key_that_do_not_lie_together_are_joined():
    rows = facts([("0.jpg", jpeg(0)), ("1.jpg", jpeg(99)), ("0.txt", b"zero"), ("1.txt", b"one")])
    assert [(row["key"], row["text"], row["error"]) for row in rows] == [
        ("0", "zero", None),
        ("1", "one", None),
    ]


def test_files_that_belong_to_no_sample_make_no_row():
    assert facts([(".DS_Store", b"x"), ("._0.jpg", b"x"), ("README", b"x")]) == []


def test_a_cut_costs_the_row_that_it_goes_through_and_no_other():
    data = archive([(f"{i}.{e}", d) for i in range(3) for e, d in (("jpg", jpeg(i)), ("txt", b"caption"))])
    offsets = [row["offset"] for row in facts(data)]
    inside = facts(data[: offsets[1] + 5])
    assert [(row["key"], row["error"]) for row in inside] == [("0", None), ("1", "tar_cut")]
    before_text = facts(data[: offsets[1] + 1024])
    assert [(row["key"], row["error"]) for row in before_text] == [("0", None), ("1", "tar_cut")]
    between = facts(data[: offsets[1] - 512])
    assert [(row["kind"], row["error"]) for row in between] == [("pair", None), ("damage", "tar_no_end")]
    assert "members may be missing" in between[1]["detail"]


def test_damaged_files_have_one_row():
    assert [row["error"] for row in facts(b"")] == ["tar_empty"]
    assert [row["error"] for row in facts(b"<html>" * 1000)] == ["not_a_tar"]


def test_equal_facts_give_equal_bytes():
    table = read_facts(io.BytesIO(archive([("0.jpg", jpeg()), ("0.txt", b"t")])), UNIT, Limits())
    first, second = io.BytesIO(), io.BytesIO()
    write_parquet(first, table)
    write_parquet(second, table.slice(0))
    assert table.schema == SCHEMA and first.getvalue() == second.getvalue()
