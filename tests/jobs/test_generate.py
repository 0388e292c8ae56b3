"""jobs.generate and jobs.evaluate from the command line: files, resuming, and a user's mistakes."""

import hashlib
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jobs.evaluate import Evaluate, run
from jobs.generate import Generate, generate, main, read_prompts
from showo2.generate import Showo2Pipeline
from showo2.movies import pictures
from tests.generate.checkpoint import random_checkpoint

PROMPTS = ["a red circle", "a blue square", "two green triangles", "a circle and a square", "three pink circles"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def request_(tmp_path: Path, checkpoint: str) -> Generate:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return Generate(file, str(tmp_path / "out"), checkpoint, points=3, batch=2, device="cpu")


def content(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).glob("*.png")}


def counting(monkeypatch: pytest.MonkeyPatch, stop_after: int = 99) -> list[int]:
    """Notes the first index of each drawn batch; stops as Ctrl-C does after some."""
    drawn: list[int] = []
    real = Showo2Pipeline.image

    def image(self, *args, **options):
        if len(drawn) == stop_after:
            raise KeyboardInterrupt
        drawn.append(options["first"])
        return real(self, *args, **options)

    monkeypatch.setattr(Showo2Pipeline, "image", image)
    return drawn


def test_pictures_and_manifest(request_):
    manifest = generate(request_)
    assert [f["path"] for f in manifest["files"]] == [f"0000{i}.png" for i in range(5)]
    files = content(request_.out)
    assert {f["path"]: f["sha256"] for f in manifest["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert manifest == json.loads((Path(request_.out) / "manifest.json").read_text())
    assert manifest["prompts"] == PROMPTS and manifest["request"]["seed"] == 0
    with Image.open(Path(request_.out) / "00002.png") as image:
        assert image.size == (64, 64) and image.text["prompt"] == PROMPTS[2]
    assert json.loads((Path(request_.out) / "config.json").read_text())["points"] == 3


def test_a_sheet_shows_all_pictures(request_):
    manifest = generate(Generate(**{**vars(request_), "sheet": True}))
    assert "sheet.png" not in [file["path"] for file in manifest["files"]]
    with Image.open(Path(request_.out) / "sheet.png") as image:
        assert image.size[0] > 5 * 128


def test_stories_stand_in_a_row_with_their_texts(request_):
    stories = Generate(**{**vars(request_), "story": 2})
    manifest = generate(stories)
    assert len(manifest["files"]) == 5 and manifest["request"]["story"] == 2
    with Image.open(Path(request_.out) / "00002.png") as image:
        texts = json.loads(image.text["story"])
        assert image.text["prompt"] == PROMPTS[2] and texts[0].startswith(PROMPTS[2])
        assert image.width >= len(texts) * 128
    assert generate(stories) == manifest
    for option in ({"frames": 5}, {"size": 64}, {"sheet": True}):
        with pytest.raises(ValueError, match="--story goes with no --frames, --size or --sheet"):
            generate(Generate(**{**vars(stories), **option}))


def test_clips_are_movies_that_carry_their_prompts(request_):
    clips = Generate(**{**vars(request_), "frames": 5, "sheet": True})
    manifest = generate(clips)
    names = [file["path"] for file in manifest["files"]]
    assert names == [f"0000{i}.mp4" for i in range(5)] and manifest["request"]["frames"] == 5
    with av.open(f"{request_.out}/00003.mp4") as movie:
        assert movie.metadata["comment"] == PROMPTS[3] and movie.streams.video[0].average_rate == 8
    frames = pictures((Path(request_.out) / "00003.mp4").read_bytes())
    assert len(frames) == 5 and frames[0].size == (64, 64)
    with Image.open(Path(request_.out) / "sheet.png") as image:  # A clip a row: its first and its last frame.
        assert image.width == 2 * 136 + 8 and image.height > 5 * 136
    before = {name: (Path(request_.out) / name).read_bytes() for name in names}
    (Path(request_.out) / names[2]).unlink()
    assert generate(clips) == manifest
    assert before == {name: (Path(request_.out) / name).read_bytes() for name in names}
    generate(request_)
    assert not list(Path(request_.out).glob("*.mp4"))
    with pytest.raises(ValueError, match="frames=6"):
        generate(Generate(**{**vars(request_), "frames": 6}))


def test_a_stopped_run_goes_on_and_gives_the_same(request_, monkeypatch, tmp_path):
    whole = generate(request_)
    other = Generate(**{**vars(request_), "out": str(tmp_path / "other")})
    counting(monkeypatch, stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        generate(other)
    monkeypatch.undo()
    drawn = counting(monkeypatch)
    assert generate(other) == whole
    assert drawn == [2, 4]
    assert content(other.out) == content(request_.out)
    drawn.clear()
    assert generate(other) == whole and drawn == []


def test_a_damaged_picture_is_drawn_again(request_, monkeypatch):
    whole = generate(request_)
    before = content(request_.out)
    (Path(request_.out) / "00003.png").write_bytes(b"\0" * len(before["00003.png"]))
    (Path(request_.out) / "00004.png").unlink()
    drawn = counting(monkeypatch)
    assert generate(request_) == whole and drawn == [2, 4]
    assert content(request_.out) == before


def test_more_prompts_draw_only_what_is_new_and_fewer_leave_nothing_behind(request_, monkeypatch):
    generate(request_)
    with request_.prompts.open("a") as file:
        file.write('{"prompt": "a cyan square"}\n')
    drawn = counting(monkeypatch)
    generate(request_)
    assert drawn == [4] and len(content(request_.out)) == 6
    request_.prompts.write_text('{"prompt": "a red circle"}\n')
    assert len(generate(request_)["files"]) == 1 == len(content(request_.out))


def test_another_seed_replaces_the_pictures(request_):
    generate(request_)
    before = content(request_.out)
    generate(Generate(**{**vars(request_), "seed": 1}))
    after = content(request_.out)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in after)


@pytest.mark.parametrize("line", [b"red circle", b'{"text": "a"}', b'{"prompt": 3}', b"[1]", b'{"prompt": "\xff"}'])
def test_a_bad_line_is_named(tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl:3: expected"):
        read_prompts(file)


def test_no_prompts_is_an_error(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(file)


def test_clips_begin_with_the_pictures_that_lines_name(request_, tmp_path, monkeypatch):
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"prompt": "it moves", "image": f"{number}.png"}) + "\n" for number in (0, 1, 0)]
    request_.prompts.write_text("".join(lines))
    clips = Generate(**{**vars(request_), "frames": 5})
    manifest = generate(clips)
    pipeline = Showo2Pipeline.from_pretrained(request_.checkpoint, device="cpu")
    alone = pipeline.animate(Image.open(tmp_path / "1.png"), "it moves", 5.0, 3, seed=0, frames=5, first=1)
    shown = pictures((Path(request_.out) / "00001.mp4").read_bytes())
    difference = np.asarray(shown[0], np.int16) - np.asarray(alone[0][0], np.int16)
    assert len(shown) == 5 and np.abs(difference).mean() < 4
    assert generate(clips) == manifest
    Image.new("RGB", (80, 64), "green").save(tmp_path / "1.png")
    assert generate(clips)["request_hash"] != manifest["request_hash"]
    with pytest.raises(ValueError, match="add --frames 17"):
        generate(request_)


@pytest.mark.parametrize(("line", "message"), [
    ('{"prompt": "a", "image": "absent.png"}', r"prompts\.jsonl:2: image .*absent\.png: "),
    ('{"prompt": "a", "image": "prompts.jsonl"}', r"prompts\.jsonl:2: image .*cannot identify"),
    ('{"prompt": "a", "image": 3}', r"prompts\.jsonl:2: expected"),
    ('{"prompt": "a"}', "1 of 2 lines name an image"),
])
def test_a_bad_picture_is_named(tmp_path, line, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "fine.png")
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine", "image": "fine.png"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_prompts(file)


def test_the_command_line(request_, checkpoint, monkeypatch, capsys):
    line = ["--checkpoint", checkpoint, "--prompts", str(request_.prompts), "--out", request_.out, "--seed", "7",
            "--points", "3"]
    monkeypatch.setattr(sys, "argv", ["generate", *line])
    main()
    assert "5 pictures in" in capsys.readouterr().out and len(content(request_.out)) == 5


@pytest.mark.parametrize(("arguments", "message"), [
    (["--prompts", "absent.jsonl", "--out", "x"], "absent.jsonl"),
    (["--prompts", "{prompts}", "--out", "{prompts}.out", "--checkpoint", "nowhere"], "nowhere: no such file or folder"),
    (["--prompts", "{prompts}", "--out", "x", "--speed", "9"], "--speed"),
    (["--prompts", "{prompts}", "--out", "x", "--seed", "blue"], "--seed"),
    (["--prompts", "{prompts}", "--out", "x", "--points", "1"], "points=1"),
])
def test_mistakes_are_told_in_a_line(request_, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["generate", *(a.format(prompts=request_.prompts) for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_evaluate_writes_the_scores(checkpoint, tmp_path):
    config = Evaluate(json=tmp_path / "scores.json", checkpoint=checkpoint, save=tmp_path / "pictures", pictures=2,
                      questions=2, points=3, device="cpu")
    report = run(config)
    written = json.loads(config.json.read_text())
    assert written["picture"] == report.scores["picture"] and set(written["question"]) == {
        "colour", "shape", "place", "count", "relation", "score"}
    assert 0 <= written["picture"]["score"] <= 1
    assert written["manifest"]["checkpoint_hash"] == Showo2Pipeline.from_pretrained(checkpoint).checkpoint_hash
    assert len(written["pictures"]) == 12 and len(written["questions"]) == 10
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 22
    assert run(config).scores == report.scores
