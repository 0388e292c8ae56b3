"""Selections from stored scores, models' scores, the story of a row, and what a run would take: all on real pictures."""

import io
import random
import sys
from pathlib import Path

import pytest

from jobs import curate as job
from pipelines.curate import CurateConfig, add_scores, curate
from pipelines.estimate import estimate
from pipelines.rows import load_selection, read_table
from pipelines.rules import Rules
from pipelines.scores import parse_scorers
from pipelines.select import named_selection
from pipelines.sources import InputError
from pipelines.why import why
from showo2.tiny.render import render
from showo2.tiny.world import describe, draw_scene
from tests.pipelines.conftest import write_tar

SCENES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CurateConfig:
    """A dataset of rendered scenes: the first half with their true captions, the others with their neighbours'."""
    folder = tmp_path_factory.mktemp("select")
    rng = random.Random(3)
    scenes = [draw_scene(rng) for _ in range(SCENES)]
    members = []
    for number, scene in enumerate(scenes):
        buffer = io.BytesIO()
        render(scene, 512).save(buffer, "jpeg", quality=90)
        told = scene if number < SCENES // 2 else scenes[(number + 1) % SCENES]
        members += [
            (f"{number:02d}.jpg", buffer.getvalue()),
            (f"{number:02d}.txt", describe(told, "full").encode()),
        ]
    write_tar(folder / "web.tar", members)
    config = CurateConfig((f"web={folder}/web.tar",), str(folder / "data"), workers=0)
    curate(config)
    return config


@pytest.fixture(scope="module")
def scored(data) -> CurateConfig:
    """The same with scores of SigLIP, of the packaged ONNX model and of pixels."""
    config = CurateConfig((), data.out, score=("similarity=tiny:siglip", "nsfw", "pixels"), workers=0)
    add_scores(config)
    return config


def scores(config: CurateConfig, family: str) -> list[float]:
    """The stored scores of the only unit, in order of its rows."""
    (path,) = (Path(config.out) / "scores" / family).glob("*.parquet")
    return read_table(config.out, f"scores/{family}/{path.name}")[family].to_pylist()


def test_siglip_likes_the_true_captions_better(scored):
    found = scores(scored, "similarity")
    assert sum(found[: SCENES // 2]) > sum(found[SCENES // 2 :]) and all(-1 <= score <= 1 for score in found)


def test_the_onnx_model_finds_nothing_in_shapes(scored):
    assert all(0 <= score < 0.5 for score in scores(scored, "nsfw"))


def test_a_selection_is_part_of_base_and_touches_no_media(scored, data):
    tar = Path(data.source[0].partition("=")[2])
    cut = sorted(scores(scored, "similarity"))[SCENES // 3]
    tar.rename(tar.with_suffix(".away"))
    try:
        report = named_selection(data.out, "hq", Rules(min_similarity=cut), workers=0)
        again = named_selection(data.out, "hq", Rules(min_similarity=cut), workers=0)
    finally:
        tar.with_suffix(".away").rename(tar)
    assert report == again and report["counts"] == {
        "dropped:dissimilar": SCENES // 3,
        "kept": SCENES - SCENES // 3,
    }
    assert sum(unit.rows for unit in load_selection(data.out, "hq").units) == SCENES - SCENES // 3
    kept = dict(report["sweep"]["similarity"])
    assert kept[-0.2] == SCENES - SCENES // 3 and list(kept.values()) == sorted(kept.values(), reverse=True)


def test_a_score_that_was_never_made_is_named(data):
    with pytest.raises(InputError, match="looks at language, which was not measured: add --score text"):
        named_selection(data.out, "english", Rules(languages=("en",)), workers=0)


def test_the_story_of_a_row(scored, data):
    cut = max(scores(scored, "similarity"))
    named_selection(data.out, "strict", Rules(min_similarity=cut + 1), workers=0)
    story = "\n".join(why(data.out, "web/03"))
    assert "512 x 512" in story and "similarity" in story and "account: kept" in story
    assert "selection strict: dropped (dissimilar)" in story
    uid = story.partition(":")[0]
    assert why(data.out, uid) == why(data.out, "web/03")
    with pytest.raises(InputError, match="no row"):
        why(data.out, "ffffffffffffffffffff")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blur", "not one of text, pixels"),
        ("nudity=model", "not one of"),
        ("similarity=tiny:nothing", "not a shipped part"),
    ],
)
def test_an_unknown_scorer_is_named(spec, message):
    with pytest.raises(InputError, match=message):
        parse_scorers((spec,))


def test_a_dry_run_writes_nothing_and_says_what_a_run_would_take(data, tmp_path, monkeypatch, capsys):
    found = estimate(CurateConfig(data.source, str(tmp_path / "o"), score=("pixels",)))
    assert found.rows == SCENES and found.tars == 1 and found.seconds["pixels"] > 0
    arguments = ["--source", data.source[0], "--out", str(tmp_path / "o"), "--dry-run", "--price", "2"]
    monkeypatch.setattr(sys, "argv", ["curate", *arguments])
    job.main()
    told = capsys.readouterr().out
    assert f"about {SCENES} rows" in told and "at 2 a worker's hour" in told and not (tmp_path / "o").exists()


def test_select_on_the_command_line(scored, data, tmp_path, monkeypatch, capsys):
    (rules := tmp_path / "hq.json").write_text('{"min_side": 600}')
    monkeypatch.setattr(job, "connect", lambda: None)
    monkeypatch.setattr(
        sys, "argv", ["curate", "--out", data.out, "--select", "big", "--rules", str(rules), "--workers", "0"]
    )
    job.main()
    assert f"big: dropped:too_small {SCENES}; 0 of {SCENES} rows" in capsys.readouterr().out
