import io
import json
import random
import tarfile
from collections import Counter

import pytest
from PIL import Image

from pipelines.curate import CurateConfig, curate
from pipelines.rules import Rules
from showo2.tiny import sources, world
from showo2.tiny.words import CAPTION_PROMPTS

OPTIONS = {"pictures": 90, "rows": 20, "seed": 5}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("sources")
    truth = sources.write_sources(sources.Options(out, **OPTIONS, workers=2))
    return out, truth


def rows_of(out, source):
    """Truth of a source's rows, and the members that a tolerant reader finds in its tars by (tar, key)."""
    truths = [
        json.loads(line) for path in sorted((out / "truth").glob(f"{source}-*")) for line in path.open()
    ]
    members: dict[tuple[str, str], dict[str, bytes]] = {}
    for path in sorted((out / source).glob("*.tar")):
        with tarfile.open(path) as archive:
            try:
                for info in archive:
                    key, suffix = info.name.split(".")
                    body = archive.extractfile(info).read()
                    if len(body) == info.size:
                        members.setdefault((f"{source}/{path.name}", key), {})[suffix] = body
            except (tarfile.ReadError, OSError):
                pass
    return truths, members


def test_bytes_depend_on_the_seed_alone(written, tmp_path):
    out, _ = written
    sources.write_sources(sources.Options(tmp_path / "again", **OPTIONS, workers=1))
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    assert all((out / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


def test_second_run_does_nothing_and_other_options_are_refused(written, capsys):
    out, truth = written
    assert sources.write_sources(sources.Options(out, **OPTIONS)) == truth
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other options"):
        sources.write_sources(sources.Options(out, **(OPTIONS | {"seed": 6})))


def test_tars_hold_what_the_truth_says(written):
    out, truth = written
    for source, facts in truth["sources"].items():
        truths, members = rows_of(out, source)
        readable = [t for t in truths if not t["lost"]]
        complete = {row for row, parts in members.items() if "json" in parts}
        assert {(t["tar"], t["key"]) for t in readable} == complete
        assert facts["rows"] == len(truths) and facts["rows_lost_in_cut_tar"] == len(truths) - len(readable)
        for t in readable:
            check_row(t, members[t["tar"], t["key"]])
        pictures = [members[t["tar"], t["key"]][t["format"]] for t in readable]
        whole = [p for p, t in zip(pictures, readable, strict=True) if t["kind"] in ("plain", "duplicate")]
        assert facts["same_bytes_as_another_row"] == len(whole) - len(set(whole))


def check_row(truth, parts):
    picture, kind = parts[truth["format"]], truth["kind"]
    if kind == "empty":
        assert picture == b""
    elif kind == "not_an_image":
        assert picture.startswith(b"<!DOCTYPE")
    elif kind == "truncated":
        with pytest.raises(OSError):
            Image.open(io.BytesIO(picture)).load()
    else:
        image = Image.open(io.BytesIO(picture))
        image.load()
        assert image.size == (truth["width"], truth["height"])
        assert (min(image.size) < 512) == (kind == "small")
    if kind == "bad_caption":
        with pytest.raises(UnicodeDecodeError):
            parts["txt"].decode()


def test_web_plants_damage_and_one_cut_tar(written):
    _, truth = written
    web = truth["sources"]["web"]
    assert web["rows_lost_in_cut_tar"] > 0 and web["kinds"]["small"] > 0
    assert web["same_bytes_as_another_row"] > 0


def test_every_kind_of_damage_is_drawn_about_as_often_as_asked():
    kinds = [sources.kind_of(0, "web", i) for i in range(4000)]
    for kind, share in sources.PLANTED.items():
        assert kinds.count(kind) / 4000 == pytest.approx(share, rel=0.5)


def test_synthetic_captions_are_true_and_training_text_holds_no_held_out_prompt(written):
    out, _ = written
    for source in ("web", "synthetic"):
        for t in rows_of(out, source)[0]:
            scene = world.Scene(tuple(world.Object(**thing) for thing in t["scene"]))
            if source == "synthetic":
                assert world.satisfies(scene, world.parse(t["text"]))
            try:
                assert not world.is_held_out(t["text"])
            except ValueError:
                assert source == "web"  # junk, which says nothing


def test_conversations_are_llava(written):
    out, _ = written
    truths, members = rows_of(out, "instruct")
    for t in truths:
        record = json.loads(members[t["tar"], t["key"]]["json"])
        turns = record["conversations"]
        assert turns[0]["value"].startswith("<image>\n")
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert record["image"] == f"{t['key']}.{t['format']}"
        asked = [turn["value"].removeprefix("<image>\n") for turn in turns[::2]]
        assert all(words not in CAPTION_PROMPTS.values() for words in asked[:-1])  # a caption would tell the answers


def test_conversations_begin_with_every_kind_of_question():
    rng = random.Random(0)
    first = [sources.conversation(world.draw_scene(rng), rng)[0]["value"].removeprefix("<image>\n") for _ in range(2000)]
    begun = Counter(" ".join(question.split()[:2]) for question in first)
    assert min(begun[words] for words in ("what colour", "what shape", "where is", "how many", "is the")) > 150, begun


def test_a_quarter_or_more_of_conversations_compares_two_things():
    rows = [sources.make_row(0, "instruct", index, "k") for index in range(300)]
    said = [json.loads(dict(row.members)["json"])["conversations"] for row in rows]
    asked = [[turn["value"].removeprefix("<image>\n") for turn in turns[::2]] for turns in said]
    assert sum(any(question.startswith("is the ") for question in turns) for turns in asked) >= 75


def test_clips_and_stories_are_kept_by_the_pipeline(tmp_path):
    options = sources.Options(tmp_path, pictures=10, rows=3, clips=4, clip_instruct=3, stories=5, workers=1)
    truth = sources.write_sources(options)["sources"]
    counts = {"clips": 4, "clip_instruct": 3, "stories": 5}
    assert {name: truth[name]["rows"] for name in counts} == counts
    again = sources.make_row(options.seed, "clips", 3, "000010000")
    with tarfile.open(tmp_path / "clips" / "00001.tar") as archive:
        assert archive.extractfile("000010001.mp4").read() == again.members[0][1]
    with tarfile.open(tmp_path / "clip_instruct" / "00000.tar") as archive:
        said = json.load(archive.extractfile("000000001.json"))["conversations"]
    assert said[0]["value"].startswith("<video>\n") and [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
    named = (f"clips={tmp_path}/clips", f"asked={tmp_path}/clip_instruct", f"stories:omnicorpus={tmp_path}/stories")
    rules = Rules(min_seconds=2.9, max_cuts=0, min_motion=0.3, max_frozen=0.2)
    report = curate(CurateConfig(named, str(tmp_path / "data"), rules, score=("video", "text"), workers=0))
    assert report.total == {"kept": 12}
