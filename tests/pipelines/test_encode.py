"""Encoding as a whole: pictures become audited latents, and nothing but the input decides the bytes.

Most tests run in this process (workers=0); those about Ray say so.
"""

import io
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from PIL import Image

from pipelines.captioner import SCHEMA as CAPTIONS
from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, check, encode
from pipelines.facts import uid_of
from pipelines.latents import AuditFailed, LatentEncoder
from pipelines.publish import publish, publish_record, read_json
from pipelines.rows import load_selection, read_rows
from pipelines.run import RunFailed
from pipelines.sources import InputError
from showo2.shards import Manifest
from showo2.tiny.render import render
from showo2.tiny.world import draw_scene
from showo2.vae import WanVAE, to_image
from tests.pipelines.conftest import write_tar

pytestmark = pytest.mark.timeout(300)  # for a busy machine

TURNS = [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": "two"}]


def scene(seed: int, size: tuple[int, int] = (520, 520), form: str = "JPEG", exif: int = 1) -> bytes:
    """A picture of the world of shapes on a canvas of `size`."""
    image = Image.new("RGB", size, (235, 235, 235))
    side = min(size)
    image.paste(render(draw_scene(random.Random(seed), False), side), ((size[0] - side) // 2, 0))
    tag = Image.Exif()
    tag[0x0112] = exif
    buffer = io.BytesIO()
    image.save(buffer, form, exif=tag)
    return buffer.getvalue()


def undecodable() -> bytes:
    """A PNG whose header and chunks are whole and whose pixels are not."""
    data = bytearray(scene(7, form="PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 200] = bytes(200)
    return bytes(data)


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    """A dataset of two tars: 14 pairs of which one cannot be decoded, and 2 pairs with 3 conversations."""
    folder = tmp_path_factory.mktemp("sources")
    members = []
    for i in range(10):
        members += [(f"{i:04d}.jpg", scene(i)), (f"{i:04d}.txt", b"caption %d" % i)]
    shapes = [("0010.png", scene(10, form="PNG")), ("0011.jpg", scene(11, (800, 520))),
              ("0012.jpg", scene(12, (520, 900), exif=6)), ("0013.png", undecodable())]  # fmt: skip
    for name, data in shapes:
        members += [(name, data), (name[:4] + ".txt", b"caption " + name[:4].encode())]
    write_tar(folder / "00000.tar", members)
    members = [("a.jpg", scene(20)), ("a.txt", b"a"), ("b.jpg", scene(21)), ("b.txt", b"b")]
    for i in range(3):
        members += [
            (f"c{i}.jpg", scene(30 + i)),
            (f"c{i}.json", json.dumps({"conversations": TURNS}).encode()),
        ]
    write_tar(folder / "00001.tar", members)
    out = tmp_path_factory.mktemp("data")
    curate(CurateConfig((f"web={folder}",), str(out), workers=0))
    return out


@pytest.fixture(scope="module")
def run(curated, tmp_path_factory):
    """One finished run: (config, report)."""
    out = tmp_path_factory.mktemp("encoded") / "data"
    shutil.copytree(curated, out)
    config = EncodeConfig(str(out), workers=0, batch=4)
    return config, encode(config)


def published(root: str) -> dict[str, bytes]:
    """Everything that must not depend on how the run went."""
    files = [path for path in Path(root).rglob("*") if path.is_file()]
    skip = ("report.html", "report.json", "curate.json", "encode.json")
    return {str(p.relative_to(root)): p.read_bytes() for p in files if p.name not in skip}


def encoder(config: EncodeConfig) -> LatentEncoder:
    return LatentEncoder(config.vae, config.data, asdict(config.options), gpu=False)


def test_every_row_is_encoded_or_failed(run):
    config, report = run
    assert (report.rows, report.failed, report.shards) == (18, {"undecodable": 1}, 3)
    manifest = Manifest.load(config.data)
    assert manifest.hash == report.hash and manifest.buckets == [(1, 8, 8)]
    assert manifest.totals() == {"web conversation 1x8x8": 3, "web pair 1x8x8": 15}
    ledger = {row["key"]: row for row in pq.read_table(f"{config.data}/ledger.parquet").to_pylist()}
    assert len(ledger) == 19 and ledger["0013"]["reason"] == "undecodable" and ledger["0013"]["detail"]
    assert [key for key, row in ledger.items() if row["outcome"] != "kept"] == ["0013"]
    families = read_json(config.data, "manifest.json")["families"]
    assert families["latents/1x8x8"]["rows"] == 18
    assert read_json(config.data, "encode.json")["size"] == 64


def test_rows_come_back_as_their_pictures(run):
    config, report = run
    vae = WanVAE.from_pretrained(config.vae)
    manifest = Manifest.load(config.data)
    seeds = {uid_of("web", f"{i:04d}"): i for i in range(12)}
    for _, reader in manifest.readers():
        assert reader.schema.vae == vae.weights_hash
        for i in range(len(reader)):
            row = reader.read(i, teacher=True)
            teacher = np.asarray(Image.open(io.BytesIO(row.teacher)).convert("RGB"), np.float32)
            decoded = np.asarray(to_image(vae.decode(row.latents[None].float())[0, :, 0]), np.float32)
            assert (
                teacher.shape == (64, 64, 3)
                and 10 * np.log10(255**2 / np.square(teacher - decoded).mean()) > 28
            )
            if row.uid in seeds:
                truth = np.asarray(render(draw_scene(random.Random(seeds[row.uid]), False), 64), np.float32)
                assert 10 * np.log10(255**2 / np.square(truth - decoded).mean()) > 22
    assert report.psnr[1] > 28 and abs(report.mean) < 0.5 and 0.5 < report.std < 1.5


def test_provenance_and_texts(run):
    config, _ = run
    rows = {
        row.uid: row
        for _, reader in Manifest.load(config.data).readers()
        for row in map(reader.read, range(len(reader)))
    }
    wide, turned = rows[uid_of("web", "0011")], rows[uid_of("web", "0012")]
    assert (wide.width, wide.height, wide.crop) == (800, 520, (140, 0, 660, 520))
    assert (turned.width, turned.height, turned.crop) == (900, 520, (190, 0, 710, 520))
    assert (wide.text.text, wide.text.captioner, wide.kind, wide.source) == (
        "caption 0011",
        "",
        "pair",
        "web",
    )
    talk = rows[uid_of("web", "c0")]
    assert talk.kind == "conversation" and talk.text.conversation() == TURNS


def test_a_second_run_does_nothing(run):
    config, report = run
    before = {p: p.stat().st_mtime_ns for p in Path(config.data).rglob("*.arrow")}
    again = encode(config)
    assert (again.hash, again.fresh, report.fresh) == (report.hash, 0, 2)
    assert before == {p: p.stat().st_mtime_ns for p in Path(config.data).rglob("*.arrow")}


def test_two_actors_on_ray_give_the_same_bytes(run, curated, tmp_path, ray_session):
    config, report = run
    shutil.copytree(curated, tmp_path / "data")
    assert encode(replace(config, data=str(tmp_path / "data"), workers=2)).hash == report.hash
    assert published(str(tmp_path / "data")) == published(config.data)


def test_a_vanished_tar_fails_its_unit_only(run, curated, tmp_path):
    config = replace(run[0], data=str(tmp_path / "data"))
    shutil.copytree(curated, config.data)
    path = Path(load_selection(config.data).units[0].unit.path)
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        with pytest.raises(RunFailed, match="1 of 2 units failed: .*00000.tar"):
            encode(config)
    finally:
        hidden.rename(path)
    report = encode(config)
    assert (report.fresh, report.hash) == (1, run[1].hash)


def test_a_deleted_file_is_made_again(run, tmp_path):
    config, report = run
    shutil.copytree(config.data, tmp_path / "data")
    lost = next((tmp_path / "data" / "latents").rglob("*.teacher.arrow"))
    lost.unlink()
    again = encode(replace(config, data=str(tmp_path / "data")))
    assert (again.hash, again.fresh) == (report.hash, 1) and lost.is_file()


def recaption_by_hand(data: str, told: dict[str, str | None]) -> None:
    """Captions for every selected row; None is a captioner's failure."""
    for selected in load_selection(data).units:
        rows = read_rows(data, selected).to_pylist()
        values = []
        for row in rows:
            text = told.get(row["key"], f"new {row['key']}")
            values.append({"uid": row["uid"], "text": text, "captioner": "hand", "prompt_id": "p",
                           "finish_reason": "stop" if text else "failed:empty_caption"})  # fmt: skip
        table = pa.Table.from_pylist(values, CAPTIONS)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        entry = publish(data, f"captions/{selected.unit.id}.parquet", buffer.getvalue())
        record = {"unit": selected.unit, "fingerprint": "x", "selection": selected.hash, "files": [entry],
                  "rows": len(rows)}  # fmt: skip
        publish_record(data, "captions", selected.unit.id, record)


def test_new_captions_rewrite_texts_only(run, tmp_path):
    config, report = run
    config = replace(config, data=str(tmp_path / "data"))
    shutil.copytree(run[0].data, config.data)
    before = {p: p.stat().st_mtime_ns for p in Path(config.data).rglob("*.arrow")}
    recaption_by_hand(config.data, {})
    again = encode(config)
    assert (again.rows, again.fresh) == (18, 2) and again.hash != report.hash
    assert before == {p: p.stat().st_mtime_ns for p in before}
    rows = [
        row
        for _, reader in Manifest.load(config.data).readers()
        for row in map(reader.read, range(len(reader)))
    ]
    assert {row.text.captioner for row in rows if row.kind == "pair"} == {"hand"}
    assert {row.text.text for row in rows if row.kind == "pair"} >= {"new 0000", "new a"}
    recaption_by_hand(config.data, {"0001": None})
    assert encode(config).failed == {"empty_caption": 1, "undecodable": 1}


def test_other_sizes_live_side_by_side(run, tmp_path):
    config, _ = run
    config = replace(config, data=str(tmp_path / "data"), size=96, teacher=False)
    shutil.copytree(run[0].data, config.data)
    both = encode(config)
    manifest = Manifest.load(config.data)
    assert manifest.buckets == [(1, 8, 8), (1, 12, 12)] and both.rows == 36
    assert {shard.teacher_path for shard in manifest.shards if shard.bucket == (1, 12, 12)} == {None}


def test_a_vae_that_does_not_fit_is_stopped_by_the_audit(run, tmp_path):
    config, _ = run
    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=4, num_res_blocks=1).save_pretrained(tmp_path / "vae")
    shutil.copytree(config.data, tmp_path / "data")
    config = replace(config, data=str(tmp_path / "data"), vae=str(tmp_path / "vae"))
    selected = load_selection(config.data).units[0]
    task = {"selected": asdict(selected), "latents": "other", "captions": "sources", "print": "p"}
    before = published(config.data)
    with pytest.raises(
        AuditFailed, match="00000.tar: 4 pictures decode at .* dB, under the limit of 15.0 dB"
    ):
        encoder(config)(task)
    assert published(config.data) == before


@pytest.mark.parametrize("moment", ["latents/*/.*.tmp", "latents/*/*.arrow", "units/latents/*/*.json"])
def test_killed_at_any_moment_and_run_again_gives_the_same(run, curated, tmp_path, moment):
    config, report = run
    data = tmp_path / "data"
    shutil.copytree(curated, data)
    command = [sys.executable, "-m", "jobs.encode", "--data", str(data), "--workers", "0", "--batch", "4"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(data.glob(moment)):
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert encode(replace(config, data=str(data))).hash == report.hash
    assert published(str(data)) == published(config.data)


@pytest.mark.parametrize("options, message", [
    ({"size": 60}, "--size 60: need a multiple of 16"),
    ({"teacher_size": 0}, "--teacher-size 0: need 1 or more"),
    ({"data": "/nowhere"}, "no selection 'base' in /nowhere: run jobs.curate"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_starts(curated, options, message):
    with pytest.raises(InputError, match=message):
        check(replace(EncodeConfig(str(curated)), **options))


def test_a_photograph_through_the_full_size_vae_is_93312_bytes(tmp_path):
    folder = Path(skimage.data.__file__).parent
    members = [("rocket.jpg", (folder / "rocket.jpg").read_bytes()), ("rocket.txt", b"under 512 px"),
               ("astronaut.png", (folder / "astronaut.png").read_bytes()),
               ("astronaut.txt", b"an astronaut in an orange suit")]  # fmt: skip
    write_tar(tmp_path / "00000.tar", members)
    data = str(tmp_path / "data")
    curate(CurateConfig((f"photographs={tmp_path}/00000.tar",), data, workers=0))
    with torch.device("meta"):
        network = AutoencoderKLWan()
    network.to_empty(device="cpu").to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.02, generator=generator)
    network.save_pretrained(tmp_path / "vae")
    report = encode(EncodeConfig(data, str(tmp_path / "vae"), 432, audit=0, workers=0))
    assert report.rows == 1
    ((shard, reader),) = Manifest.load(data).readers()
    row = reader.read(0, teacher=True)
    assert shard.bucket == (1, 54, 54) and reader.schema.row_bytes == row.latents.nbytes == 93_312
    assert Image.open(io.BytesIO(row.teacher)).size == (432, 432) and torch.isfinite(row.latents).all()
