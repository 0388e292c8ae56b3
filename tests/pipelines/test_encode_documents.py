"""Stories, web documents and texts from tars to shards: all accounted for, and the same bytes whoever makes them.

Most tests run in this process (workers=0); the one about Ray says so.
"""

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, encode
from pipelines.recaption import RecaptionConfig, recaption
from pipelines.rows import load_selection, read_captions, read_rows
from pipelines.rules import Rules
from pipelines.select import named_selection
from pipelines.why import why
from showo2.shards import Manifest, Row
from showo2.shards.__main__ import Show, show, verify
from showo2.tiny.render import render
from showo2.tiny.world import describe, draw_scene
from showo2.vae import WanVAE, to_image
from tests.pipelines.conftest import write_tar
from tests.pipelines.test_encode import published, scene, undecodable

pytestmark = pytest.mark.timeout(300)  # for a busy machine

PHOTOGRAPHS = Path(skimage.data.__file__).parent
TALK = [{"from": "human", "value": "the colour of snow?"}, {"from": "gpt", "value": "white"}]


def sentence(seed: int) -> str:
    return describe(draw_scene(random.Random(seed), False))


def small(seed: int) -> bytes:
    buffer = io.BytesIO()
    render(draw_scene(random.Random(seed), False), 256).save(buffer, "jpeg")
    return buffer.getvalue()


def sample(key: str, texts: list, images: list, *pictures: bytes | None) -> list[tuple[str, bytes]]:
    """A document's members; None is a picture that could not be fetched."""
    named = [(f"{key}.{n}.jpg", data) for n, data in enumerate(pictures) if data is not None]
    return [*named, (f"{key}.json", json.dumps({"texts": texts, "images": images}).encode())]


def story(key: str, first: int, count: int = 3) -> list[tuple[str, bytes]]:
    seeds = range(first, first + count)
    return sample(key, [sentence(seed) for seed in seeds], [f"{n}.jpg" for n in range(count)], *map(scene, seeds))


def page(key: str, count: int, *pictures: bytes | None) -> list[tuple[str, bytes]]:
    """A web page: a text, a picture, a text, ... and a last text, as parallel lists with nulls."""
    texts = [text for n in range(count) for text in (f"part {n}", None)] + ["the end"]
    images = [image for n in range(count) for image in (None, f"https://example.org/{key}/{n}.jpg")] + [None]
    return sample(key, texts, images, *pictures)


ACCOUNTS = {
    "s/a": "kept", "s/b": "kept", "s/c": "kept", "s/copy": "duplicate", "s/cut": "failed:tar_cut",
    "w/photos": "kept", "w/holes": "kept", "w/long": "kept", "w/lost": "dropped:too_few_pictures",
    "w/small": "dropped:too_few_pictures", "w/words": "dropped:too_few_pictures",
    "w/pixels": "failed:undecodable", "w/lists": "failed:bad_document", "w/json": "failed:bad_json",
    "w/more": "failed:unnamed_picture", "t/a": "kept", "t/b": "kept", "t/talk": "kept", "t/copy": "duplicate",
    "t/nothing": "failed:missing_text", "p/0": "kept", "p/1": "kept",
}  # fmt: skip


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    """A dataset of all kinds: stories (two tars, one of them cut), web pages, texts and pairs."""
    root = tmp_path_factory.mktemp("sources")
    write_tar(root / "vist" / "0.tar", [*story("a", 0), *story("b", 3)])
    write_tar(root / "vist" / "1.tar", [*story("copy", 0), *story("c", 6, count=2), *story("cut", 9)])
    data = (root / "vist" / "1.tar").read_bytes()
    (root / "vist" / "1.tar").write_bytes(data[: data.index(b"cut.1.jpg") + 2000])
    photo = {name: (PHOTOGRAPHS / name).read_bytes() for name in ("astronaut.png", "color.png")}
    pages = [
        *page("photos", 1, None), ("photos.0.png", photo["astronaut.png"]),
        *page("holes", 5, scene(20), small(21), scene(22)[:-3000], None, scene(23)),
        *page("long", 4, *map(scene, range(30, 34))),
        *page("lost", 2, None, b"<html>404</html>"), *page("small", 1, small(40)),
        ("words.json", json.dumps({"texts": ["only words"], "images": [None]}).encode()),
        *page("pixels", 2, scene(41), None), ("pixels.1.png", undecodable()),
        ("lists.0.jpg", scene(42)), ("lists.json", b'{"texts": [], "images": ["x"]}'),
        ("json.0.jpg", scene(43)), ("json.json", b"{"), *page("more", 1, scene(44), scene(45)),
    ]  # fmt: skip
    write_tar(root / "web.tar", pages)
    write_tar(root / "texts.tar", [("a.txt", b"just words"), ("b.json", b'{"text": "more words"}'), ("copy.txt", b"just words"),
                                   ("talk.json", json.dumps({"conversations": TALK}).encode()), ("nothing.txt", b"")])
    write_tar(root / "pairs.tar", [(f"{n}.{e}", d) for n in (0, 1) for e, d in
                                   (("jpg", scene(50 + n)), ("txt", sentence(50 + n).encode()))])
    return root


def sources(root: Path) -> tuple[str, ...]:
    return (f"s:vist={root}/vist", f"w:omnicorpus={root}/web.tar", f"t:text={root}/texts.tar", f"p={root}/pairs.tar")


@pytest.fixture(scope="module")
def run(curated, tmp_path_factory):
    """One finished run: (config of the curation, its report, config of encoding, its report)."""
    out = str(tmp_path_factory.mktemp("data"))
    config = CurateConfig(sources(curated), out, Rules(max_pictures=3), workers=0)
    report = curate(config)
    encoding = EncodeConfig(out, workers=0, batch=4, min_psnr=0)  # shapes are what this VAE knows, and no astronaut
    return config, report, encoding, encode(encoding)


def accounts(root: str) -> dict[str, str]:
    rows = pq.read_table(f"{root}/ledger.parquet").to_pylist()
    return {f"{r['source']}/{r['key']}": f"{r['outcome']}:{r['reason']}" if r["reason"] else r["outcome"] for r in rows}


def rows(root: str) -> dict[str, Row]:
    """Rows of all shards by source/key."""
    keys = {row["uid"]: f"{row['source']}/{row['key']}" for row in pq.read_table(f"{root}/ledger.parquet").to_pylist()}
    return {keys[row.uid]: row for _, reader in Manifest.load(root).readers() for row in map(reader.read, range(len(reader)))}


def test_every_document_and_text_has_its_account(run):
    config, report, _, encoded = run
    assert accounts(config.out) == ACCOUNTS and report.rows == len(ACCOUNTS)
    assert encoded.failed == {"undecodable": 1}
    assert report.pictures == {"missing_picture": 1, "stays": 16, "too_many_pictures": 1, "too_small": 1, "truncated": 1}
    ledger = {row["key"]: row["detail"] for row in pq.read_table(f"{config.out}/ledger.parquet").to_pylist()}
    assert ledger["holes"] == "without 3 of 5 pictures: missing_picture 1, too_small 1, truncated 1"
    assert ledger["lost"] == "without 2 of 2 pictures: missing_picture 1, not_an_image 1"
    assert ledger["pixels"].startswith("picture 1: ") and ledger["photos"] is None


def test_rows_are_what_the_loader_reads(run):
    _, _, encoding, report = run
    assert Manifest.load(encoding.data).totals() == {
        "p pair 1x8x8": 2, "s interleaved 2x8x8": 1, "s interleaved 3x8x8": 2, "t text 0x0x0": 3,
        "w interleaved 1x8x8": 1, "w interleaved 2x8x8": 1, "w interleaved 3x8x8": 1}
    assert report.rows == 11 and verify(encoding.data) == 0
    found = rows(encoding.data)
    story = found["s/b"]
    assert story.kind == "interleaved" and story.latents.shape == (16, 3, 8, 8)
    assert story.text.conversation() == [
        part for n in range(3) for part in ({"text": sentence(3 + n)}, {"image": n})]
    assert found["w/holes"].text.conversation() == [
        {"text": "part 0"}, {"image": 0}, {"text": "part 1\n\npart 2\n\npart 3\n\npart 4"}, {"image": 1}, {"text": "the end"}]
    assert found["w/long"].text.conversation()[-3:] == [{"text": "part 2"}, {"image": 2}, {"text": "part 3"}]
    assert (found["w/photos"].width, found["w/photos"].height, found["w/photos"].crop) == (512, 512, (0, 0, 512, 512))
    said = {key: row.text for key, row in found.items() if row.kind == "text"}
    assert said["t/b"].text == "more words" and said["t/talk"].conversation() == TALK


def test_each_frame_is_its_picture(run):
    _, _, encoding, _ = run
    vae = WanVAE.from_pretrained(encoding.vae)
    seeds = {"s/b": [3, 4, 5], "s/c": [6, 7], "w/holes": [20, 23], "w/long": [30, 31, 32]}
    found = rows(encoding.data)
    for key, own in seeds.items():
        for frame, seed in enumerate(own):
            decoded = np.asarray(to_image(vae.decode(found[key].latents[None, :, frame : frame + 1].float())[0, :, 0]))
            truth = np.asarray(render(draw_scene(random.Random(seed), False), 64), np.float32)
            assert 10 * np.log10(255**2 / np.square(truth - decoded).mean()) > 22


def test_two_workers_give_the_same_bytes(run, curated, tmp_path, ray_session):
    config, report, encoding, encoded = run
    again = replace(config, out=str(tmp_path), workers=2)
    assert curate(again).hash == report.hash
    assert encode(replace(encoding, data=again.out, workers=2)).hash == encoded.hash
    assert published(again.out) == published(config.out)


def test_captions_are_made_of_pairs_only(run, tmp_path):
    config, _, encoding, report = run
    shutil.copytree(config.out, tmp_path / "data")
    data = str(tmp_path / "data")
    assert recaption(RecaptionConfig(data, workers=0)).counts == {"kept": 10, "stop": 2}
    before = {p: p.stat().st_mtime_ns for p in Path(data).rglob("*.arrow")}
    assert encode(replace(encoding, data=data)).rows == report.rows
    assert before == {p: p.stat().st_mtime_ns for p in before}
    old, new = rows(config.out), rows(data)
    for key, row in new.items():
        assert (row.text.captioner == "") == (row.kind != "pair")
        assert row.kind == "pair" or row.text == old[key].text
    for unit in load_selection(data).units:
        kinds = read_rows(data, unit)["kind"].to_pylist()
        reasons = read_captions(data, unit)["finish_reason"].to_pylist()
        assert all((kind == "pair") == (reason != "kept") for kind, reason in zip(kinds, reasons, strict=True))


def test_texts_are_there_once_for_all_sizes(run, tmp_path):
    config, _, encoding, _ = run
    shutil.copytree(config.out, tmp_path / "data")
    both = encode(replace(encoding, data=str(tmp_path / "data"), size=96))
    totals = Manifest.load(str(tmp_path / "data")).totals()
    assert totals["t text 0x0x0"] == 3 and totals["s interleaved 3x12x12"] == totals["s interleaved 3x8x8"] == 2
    assert both.rows == 3 + 2 * 8


def test_a_changed_rule_remakes_the_documents_that_it_changes(run, tmp_path):
    config, _, encoding, _ = run
    shutil.copytree(config.out, tmp_path / "data")
    data = str(tmp_path / "data")
    facts = {p: p.stat().st_mtime_ns for p in Path(data, "facts").iterdir()}
    report = curate(replace(config, out=data, rules=Rules(min_side=200, min_pictures=2)))
    assert facts == {p: p.stat().st_mtime_ns for p in Path(data, "facts").iterdir()}
    assert report.pictures["stays"] == 3 + 3 + 2 + 3 + 4 + 2 and accounts(data)["w/photos"] == "dropped:too_few_pictures"
    # The stories' tars and the pairs' are as they were; of the web pages, one has more pictures and one more of them.
    assert encode(replace(encoding, data=data)).fresh == 1
    totals = Manifest.load(data).totals()
    assert (totals["w interleaved 3x8x8"], totals["w interleaved 4x8x8"]) == (1, 1)
    assert named_selection(data, "long", Rules(min_pictures=4), workers=0)["counts"]["dropped:too_few_pictures"] == 5


def test_a_document_can_be_asked_about_and_looked_at(run, tmp_path, capsys):
    config, _, encoding, _ = run
    told = "\n".join(why(config.out, "w/holes"))
    assert "document" in told and "picture 0: jpeg 520 x 520, RGB" in told and "picture 2: truncated" in told
    assert "account: kept without 3 of 5 pictures: " in told
    report = (Path(config.out) / "report.html").read_text()
    assert "Pictures of kept documents" in report and "part 0" in report
    for shard in Manifest.load(encoding.data).shards:
        path = f"{encoding.data}/latents/{shard.path}"
        show(Show(path, str(tmp_path / shard.kind), rows=(0,)))
    assert {Image.open(path).size for path in (tmp_path / "interleaved").iterdir()} == {(64, 64)}
    assert not (tmp_path / "text").exists() and "just words" in capsys.readouterr().out


def test_scores_are_of_pictures_and_texts_that_stand_alone(curated, tmp_path):
    report = curate(CurateConfig(sources(curated), str(tmp_path), score=("pixels", "text"), workers=0))
    assert report.total["kept"] == 12
    report = curate(CurateConfig(sources(curated), str(tmp_path), Rules(languages=("fr",)), workers=0))
    assert accounts(str(tmp_path))["t/a"] in ("dropped:language", "duplicate") and report.total["kept"] < 12
