"""vLLM's part as far as it goes without a GPU: the engine's configuration, its requests, and what becomes of answers."""

import base64
from dataclasses import asdict

import pytest

from pipelines.answers import Answer
from pipelines.curate import CurateConfig, curate
from pipelines.rows import load_selection, read_captions
from pipelines.vllm import Waiting, engine_config, preprocess, read_answer, requests
from tests.pipelines.conftest import picture, write_tar


def test_the_engine_is_one_that_ray_accepts():
    config = engine_config("lmms-lab/llava-onevision-qwen2-7b-ov", 4)
    assert (
        config.concurrency == 4
        and config.should_continue_on_error
        and config.prepare_multimodal_stage["enabled"]
    )
    assert config.engine_kwargs["limit_mm_per_prompt"] == {"image": 1}


@pytest.fixture
def task(tmp_path) -> dict:
    """Of a unit of three pictures, of which one cannot be decoded."""
    broken = bytearray(picture(3))
    counts = broken.find(b"\xff\xc4") + 5  # of codes by length, in the first Huffman table: impossible ones
    broken[counts : counts + 16] = b"\x11" * 16
    files = (picture(1), picture(2), bytes(broken))
    members = [(f"{n}.{e}", d) for n, data in enumerate(files) for e, d in (("jpg", data), ("txt", b"alt"))]
    write_tar(tmp_path / "web.tar", members)
    curate(CurateConfig((f"web={tmp_path}/web.tar",), str(tmp_path / "data"), workers=0))
    (unit,) = load_selection(str(tmp_path / "data")).units
    return {"data": str(tmp_path / "data"), "print": "p", "selected": asdict(unit)}


def test_a_unit_goes_through_and_its_captions_are_published(task):
    arguments = {"prompts": [{"id": "p", "text": "Describe it."}], "name": "vllm:m@1",
                 "options": {"skip_sources": [], "refuse": [], "max_new_tokens": 8}}  # fmt: skip
    asked = [preprocess(row, 8) for row in requests(task | arguments)]
    assert [row["number"] for row in asked] == [0, 1]  # the third cannot be decoded
    image, text = asked[0]["messages"][0]["content"]
    assert base64.b64decode(image["image_url"]["url"].partition(",")[2])[:2] == b"\xff\xd8"
    assert text["text"] == "Describe it." and asked[0]["sampling_params"] == {
        "temperature": 0.0,
        "max_tokens": 8,
    }
    unit = Waiting(task, arguments)
    said = {"generated_text": " The image shows a red field.", "num_generated_tokens": 8}
    unit.answers = {
        0: read_answer(asked[0] | said),
        1: read_answer(asked[1] | {"__inference_error__": "died"}),
    }
    assert unit.asked == 3 and unit.answers[0] == Answer("The image shows a red field.", "length", 8)
    unit.publish()
    captions = read_captions(task["data"], unit.selected).to_pylist()
    assert [(caption["text"], caption["finish_reason"]) for caption in captions] == [
        ("A red field.", "length"), (None, "failed:engine"), (None, "failed:undecodable"),
    ]  # fmt: skip
