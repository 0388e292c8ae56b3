"""The demo at its smallest: every step for real, one page at the end, and a second run that has nothing to do."""

import json
import re
from pathlib import Path

import pytest

from jobs import _demo_checks as checks
from jobs.demo import Demo, run
from showo2.evaluate.suite import Suite
from showo2.tiny.sources import Options, write_sources
from showo2.tiny.world import CATEGORIES

STEPS = ["world", "curate", "recaption", "encode", "distill", "stage1", "stage2", "generate", "answer", "evaluate", "check"]


pytestmark = pytest.mark.timeout(400)  # the first test waits for the whole demo


@pytest.fixture(scope="module")
def demo(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    made = Demo(tmp_path_factory.mktemp("demo") / "out", pictures=60, quick=True)
    run(made)
    return made


def test_every_step_is_done_and_says_what_came_of_it(demo: Demo) -> None:
    journal = json.loads((demo.out / "steps.json").read_text())
    assert list(journal) == STEPS
    assert all(note["done"] and note["said"] and note["seconds"] > 0 for note in journal.values())
    assert json.loads((demo.out / "config.json").read_text())["pictures"] == 60


def test_accounts_close(demo: Demo) -> None:
    report = json.loads((demo.out / "data" / "report.json").read_text())
    assert sum(report["total"].values()) == report["rows"] > 50
    assert report["total"]["kept"] > 30 and report["damages"]


def test_the_page_needs_no_other_file_and_shows_everything(demo: Demo) -> None:
    page = (demo.out / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    # Two of the model's pictures and answers a kind at the least, kept and dropped ones, captions, and the curves.
    assert page.count("data:image/") > len(CATEGORIES) + 4 + 10
    for heading in ("Drawn from held-out prompts", "Asked about held-out pictures", "Scores", "Curation", "Captions",
                    "Training", "Time", "Where and with what"):  # fmt: skip
        assert f"<h2>{heading}" in page


def test_scores_are_those_of_jobs_evaluate(demo: Demo) -> None:
    scores = json.loads((demo.out / "scores.json").read_text())
    assert set(scores["picture"]) == {*CATEGORIES, "score"} and 0 <= scores["question"]["score"] <= 1


def test_a_second_run_keeps_what_is_done(demo: Demo) -> None:
    exported = demo.out / "runs" / "stage2" / "export" / "model.safetensors"
    before = {path: path.stat().st_mtime_ns for path in (exported, demo.out / "data" / "latents" / "manifest.json")}
    seconds = json.loads((demo.out / "steps.json").read_text())
    manifest = (demo.out / "data" / "latents" / "manifest.json").read_bytes()
    run(demo)
    assert exported.stat().st_mtime_ns == before[exported]
    assert (demo.out / "data" / "latents" / "manifest.json").read_bytes() == manifest
    again = json.loads((demo.out / "steps.json").read_text())
    assert {name: note["seconds"] for name, note in again.items()} == {n: note["seconds"] for n, note in seconds.items()}


def test_other_options_need_another_folder(demo: Demo) -> None:
    with pytest.raises(ValueError, match="choose another --out"):
        run(Demo(demo.out, pictures=61, quick=True))


def test_a_leak_is_found(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = checks.picture_prompts(Suite(pictures=1))[0][1]
    monkeypatch.setattr(checks, "training_set", lambda data: ({prompt, "a red circle"}, []))
    with pytest.raises(RuntimeError, match=f"are training texts, say '{prompt}'"):
        checks.held_out(demo.out / "world", str(demo.out / "data"), Suite(pictures=1))


def test_truth_knows_every_row(tmp_path: Path) -> None:
    write_sources(Options(tmp_path, pictures=20, seed=3, workers=1))
    assert len(checks.truth(tmp_path)) == 20


@pytest.mark.parametrize(("text", "right"), [("a red circle at the left", True), ("a red circle", True),
                                             ("a blue circle", False), ("IMG_0231.jpg", False), ("", False)])  # fmt: skip
def test_is_right(text: str, right: bool) -> None:
    scene = checks.Scene((checks.Object("red", "circle", 0.25, 0.5, 0.15),))
    assert checks.is_right(text, scene) is right
