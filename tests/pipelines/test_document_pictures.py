"""Documents' pictures: scored, held to the rules and to evaluation sets one by one, on photographs."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.curate import CurateConfig, add_scores, curate
from pipelines.document_pictures import flat, with_errors, with_scores
from pipelines.groups import Dedup
from pipelines.rows import load_selection, read_table
from pipelines.rules import Rules
from pipelines.select import named_selection
from pipelines.why import why
from tests.pipelines.conftest import picture, write_tar
from tests.pipelines.test_encode import scene, undecodable
from tests.pipelines.test_encode_documents import sample

PHOTOGRAPHS = Path(skimage.data.__file__).parent


def photograph(name: str, side: int = 600) -> bytes:
    buffer = io.BytesIO()
    with Image.open(PHOTOGRAPHS / name) as image:
        image.convert("RGB").resize((side, side)).save(buffer, "jpeg", quality=80)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> CurateConfig:
    """Two documents and a pair, against an evaluation set of one photograph."""
    folder = tmp_path_factory.mktemp("documents")
    images = [f"{n}.jpg" for n in range(5)]
    mixed = sample("mixed", ["a"] * 5, images, photograph("astronaut.png"), picture(1), scene(2), undecodable(), None)
    gone = sample("gone", ["a"], ["0.jpg"], photograph("astronaut.png", 700))
    write_tar(folder / "web.tar", [*mixed, *gone])
    write_tar(folder / "pairs.tar", [("0.jpg", scene(2)), ("0.txt", b"shapes")])
    write_tar(folder / "test.tar", [("0.jpg", photograph("astronaut.png", 640)), ("0.txt", b"an astronaut")])
    config = CurateConfig(
        (f"w:omnicorpus={folder}/web.tar", f"p={folder}/pairs.tar"), str(folder / "data"), Rules(min_contrast=6),
        dedup=Dedup(near_pictures=True), against=(f"test={folder}/test.tar",), score=("nsfw",), workers=0)  # fmt: skip
    curate(config)
    return config


LEFT_OUT = {0: "evaluation_set", 1: "uniform", 2: None, 3: "undecodable", 4: "missing_picture"}


def chosen(out: str, name: str = "base") -> list[dict[int, str | None]]:
    tables = [read_table(out, unit.selection, ["pictures"]) for unit in load_selection(out, name).units]
    lists = [own for table in tables for own in table["pictures"].to_pylist() if own]
    return [{entry["number"]: entry["reason"] for entry in own} for own in lists]


def test_each_picture_is_held_to_the_rules_and_to_the_evaluation_set(run):
    assert chosen(run.out) == [LEFT_OUT]
    told = "\n".join(why(run.out, "w/gone"))
    assert "dropped (too_few_pictures) without 1 of 1 pictures: evaluation_set 1" in told
    # What a pair shows, a document may show too.
    assert "account: kept" in "\n".join(why(run.out, "p/0"))


def test_a_pictures_story_has_its_scores(run):
    lines = [line for line in why(run.out, "w/mixed") if "picture 2" in line]
    assert "contrast" in lines[0] and "nsfw 0." in lines[0] and "thumb" not in lines[0]


def test_another_selection_brings_no_picture_back(run):
    named_selection(run.out, "all", Rules(), workers=0)
    assert chosen(run.out, "all") == [LEFT_OUT]


def test_scores_made_later_are_the_same(run, tmp_path):
    config = CurateConfig(run.source, str(tmp_path / "data"), Rules(), workers=0)
    curate(config)
    add_scores(CurateConfig((), config.out, score=("pixels",), workers=0))
    later, before = (sorted((Path(out) / "scores/pixels").glob("*.parquet")) for out in (config.out, run.out))
    assert {path.read_bytes() for path in later} <= {path.read_bytes() for path in before}


LISTS = st.lists(st.none() | st.lists(st.integers(0, 9), max_size=3), max_size=6)


@given(LISTS, st.integers(0, 6))
def test_scores_and_errors_go_to_their_pictures(lists, start):
    fields = pa.list_(pa.struct([("number", pa.int32()), ("error", pa.string())]))
    scored = pa.list_(pa.struct([("error", pa.string()), ("nsfw", pa.float32())]))
    own = pa.chunked_array([pa.array([x and [{"number": n, "error": None} for n in x] for x in lists], fields)])
    found = pa.chunked_array([pa.array([x and [{"error": "e" if n > 7 else None, "nsfw": n} for n in x] for x in lists], scored)])
    joined = with_scores(own.slice(start), found.slice(start))
    assert joined.to_pylist() == [
        x and [{"number": n, "error": "e" if n > 7 else None, "nsfw": n} for n in x] for x in lists[start:]]
    lost = {0: {3: "lost"}}
    rows = with_errors(pa.table({"pictures": own.slice(start)}), lost)["pictures"].to_pylist()
    assert rows == [x and [{"number": n, "error": lost.get(row, {}).get(n)} for n in x] for row, x in enumerate(lists[start:])]
    assert flat(own)[1]["number"].to_pylist() == [n for x in lists for n in x or []]
