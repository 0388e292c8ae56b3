"""Recaptioning, for real, with the shipped captioner: better texts than the alt texts, every row accounted."""

import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.captioner import Captioner, Prompt, choose_prompt, load_prompts
from pipelines.curate import CurateConfig, curate
from pipelines.models import HASH_DIGITS, weights_hash
from pipelines.recaption import RecaptionConfig, recaption
from pipelines.rows import load_selection, read_captions, read_rows
from pipelines.sources import InputError
from showo2.tiny import resolve
from showo2.tiny.render import render
from showo2.tiny.world import CAPTION_PROMPTS, STYLES, Description, Object, Scene, describe, draw_scene, parse
from tests.pipelines.conftest import write_tar

SCENES = 24


def jpeg(scene: Scene) -> bytes:
    """The scene as a web picture."""
    buffer = io.BytesIO()
    render(scene, 512).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """Scenes by key."""
    rng = random.Random(5)
    return {f"{number:04d}": draw_scene(rng) for number in range(SCENES)}


@pytest.fixture(scope="module")
def data(scenes, tmp_path_factory, ray_session) -> str:
    """A curated dataset: web pictures in two tars (one with a picture that only a decoder finds broken), one
    synthetic pair and one conversation."""
    root = tmp_path_factory.mktemp("recaption")
    members = [
        (f"{key}.{e}", d) for key, s in scenes.items() for e, d in (("jpg", jpeg(s)), ("txt", b"IMG_0231"))
    ]
    write_tar(root / "web" / "0.tar", members[: SCENES // 2 * 2])
    broken = bytearray(jpeg(draw_scene(random.Random(6))))
    counts = broken.find(b"\xff\xc4") + 5  # of codes by length, in the first Huffman table: impossible ones
    broken[counts : counts + 16] = b"\x11" * 16
    write_tar(
        root / "web" / "1.tar", [*members[SCENES // 2 * 2 :], ("bad.jpg", bytes(broken)), ("bad.txt", b"bad")]
    )
    scene = draw_scene(random.Random(7))
    turns = [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": "two"}]
    write_tar(root / "synthetic.tar", [("0.jpg", jpeg(scene)), ("0.txt", b"its own text")])
    chat = json.dumps({"conversations": turns}).encode()
    write_tar(root / "instruct.tar", [("0.jpg", jpeg(draw_scene(random.Random(8)))), ("0.json", chat)])
    sources = (f"web={root}/web", f"synthetic={root}/synthetic.tar", f"instruct={root}/instruct.tar")
    curate(CurateConfig(sources, str(root / "data")))
    return str(root / "data")


@pytest.fixture(scope="module")
def report(data, ray_session):
    """Of one finished run."""
    return recaption(RecaptionConfig(data))


def captions(data: str) -> dict[str, dict]:
    """Rows by source/key."""
    result = {}
    for unit in load_selection(data).units:
        for row, caption in zip(
            read_rows(data, unit).to_pylist(), read_captions(data, unit).to_pylist(), strict=True
        ):
            assert row["uid"] == caption["uid"]
            result[f"{row['source']}/{row['key']}"] = caption
    return result


def meaning(text: str) -> Description | None:
    """What a caption says, in whatever order; None for no caption."""
    try:
        return parse(text).canonical()
    except ValueError:
        return None


def test_captions_are_right_where_the_alt_texts_are_not(data, report, scenes):
    said = captions(data)
    right = 0
    for key, scene in scenes.items():
        caption = said[f"web/{key}"]
        assert caption["captioner"].startswith("tiny:captioner@") and caption["finish_reason"] == "stop"
        right += meaning(caption["text"]) == meaning(describe(scene, caption["prompt_id"]))
    assert right >= 0.75 * SCENES  # of the alt texts, none is
    assert {said[f"web/{key}"]["prompt_id"] for key in scenes} == set(CAPTION_PROMPTS)


def test_rows_that_keep_their_text_and_rows_that_fail(data, report):
    said = captions(data)
    assert said["synthetic/0"]["text"] == "its own text" and said["synthetic/0"]["finish_reason"] == "kept"
    assert said["instruct/0"]["text"] is None and said["instruct/0"]["finish_reason"] == "kept"
    assert said["web/bad"]["text"] is None and said["web/bad"]["finish_reason"] == "failed:undecodable"
    assert report.counts == {"failed:undecodable": 1, "kept": 2, "stop": SCENES}
    assert sum(report.counts.values()) == sum(unit.rows for unit in load_selection(data).units)


def test_again_is_nothing_new_and_a_killed_unit_comes_back_the_same(data, report):
    files = {path: path.read_bytes() for path in (Path(data) / "captions").iterdir()}
    for record in list((Path(data) / "units" / "captions").iterdir())[:2]:
        record.unlink()
    next(iter(files)).unlink()
    assert recaption(RecaptionConfig(data, workers=1)).hash == report.hash
    assert files == {path: path.read_bytes() for path in (Path(data) / "captions").iterdir()}


def test_a_refused_caption_is_asked_for_again_in_other_words(tmp_path):
    scene = Scene((Object("orange", "circle", 0.5, 0.5, 0.15),))  # of which every style says something else
    write_tar(tmp_path / "0.tar", [("0.jpg", jpeg(scene))])
    with tarfile.open(tmp_path / "0.tar") as tar:
        member = tar.getmember("0.jpg")
    row = {"uid": "00", "source": "web", "kind": "pair", "text": "", "hash": "", "offset": member.offset_data,
           "size": member.size}
    folder = resolve("tiny:captioner")
    prompts = [{"id": style, "text": text} for style, text in CAPTION_PROMPTS.items()]
    options = {"batch": 4, "max_new_tokens": 64, "skip_sources": [], "refuse": [], "gpu": False}

    def say(*refuse: str) -> dict:
        captioner = Captioner(folder, f"tiny:captioner@{weights_hash(folder)[:HASH_DIGITS]}", prompts, options | {"refuse": refuse})
        (caption,) = captioner.captions(str(tmp_path / "0.tar"), [row])
        return caption

    said: list[str] = []
    for _ in prompts:
        caption = say(*said)
        assert caption["text"] == describe(scene, caption["prompt_id"]) and caption["text"] not in said
        said.append(caption["text"])
    caption = say(*said)
    assert caption["text"] is None and caption["finish_reason"] == "failed:evaluation_prompt"


def test_other_options_are_other_captions(data, report, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"id": "only", "text": CAPTION_PROMPTS["shapes"]}]))
    other = recaption(RecaptionConfig(data, prompts=str(prompts), max_new_tokens=2))
    assert other.hash != report.hash and other.counts["length"] > 0
    assert {c["prompt_id"] for c in captions(data).values() if c["prompt_id"]} == {"only"}
    assert recaption(RecaptionConfig(data)).hash == report.hash


def test_a_batch_does_not_change_what_is_said(data, report):
    """Equal texts alone and in a batch: prompts of one batch are equally long, so nothing is padded."""
    folder = resolve("tiny:captioner")
    options = {"batch": 1, "max_new_tokens": 64, "skip_sources": [], "refuse": [], "gpu": False}
    alone = Captioner(
        folder,
        f"x@{weights_hash(folder)[:16]}",
        [{"id": i, "text": t, "weight": STYLES[i]} for i, t in CAPTION_PROMPTS.items()],
        options,
    )
    unit = next(unit for unit in load_selection(data).units if unit.unit.source == "web")
    rows = read_rows(data, unit).to_pylist()[:6]
    texts = [caption["text"] for caption in alone.captions(unit.unit.path, rows)]
    assert texts == read_captions(data, unit)["text"].to_pylist()[:6]


def test_prompts_are_spread_and_fixed_by_uid():
    prompts = tuple(Prompt(name, name) for name in "abc")
    chosen = [choose_prompt(f"{number:032x}", prompts).id for number in range(600)]
    assert all(150 < chosen.count(name) < 250 for name in "abc")
    heavy = (Prompt("a", "a"), Prompt("b", "b", 4), Prompt("c", "c"))
    chosen = [choose_prompt(f"{number:032x}", heavy).id for number in range(600)]
    assert 350 < chosen.count("b") < 450
    assert all(50 < chosen.count(name) < 150 for name in "ac")
    assert len(load_prompts("some/model", None)) == 3


@pytest.mark.parametrize(
    "text", ["{", "[]", '[{"id": "a"}]', '[{"id": "a", "text": "x", "weight": 0}]', '[{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]']
)
def test_a_bad_prompt_file_is_named(tmp_path, text):
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"prompts\.json"):
        load_prompts("tiny:captioner", str(path))


def test_mistakes(data, report, tmp_path):
    with pytest.raises(InputError, match=r"run jobs\.curate"):
        recaption(RecaptionConfig(str(tmp_path)))
    with pytest.raises(InputError, match="not a shipped part"):
        recaption(replace(RecaptionConfig(data), captioner="tiny:kaptioner"))
    with pytest.raises(InputError, match="--captioner .*nothing: no such folder"):
        recaption(replace(RecaptionConfig(data), captioner=str(tmp_path / "nothing")))


def test_weights_that_change_under_a_running_job_are_noticed():
    with pytest.raises(RuntimeError, match="has changed since the job began"):
        options = {"max_new_tokens": 64, "gpu": False}
        Captioner(resolve("tiny:captioner"), "tiny:captioner@0123456789abcdef", [], options)


def test_weights_hash_is_of_the_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert weights_hash(str(tmp_path / "a")) == weights_hash(str(tmp_path / "b"))
    (tmp_path / "b" / "config.json").write_text("{ }")
    assert weights_hash(str(tmp_path / "a")) != weights_hash(str(tmp_path / "b"))
