"""Curation from and to an object store: the same command, the same accounts."""

import io
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.victims import encoded
from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, encode
from pipelines.groups import Dedup
from pipelines.publish import read_bytes, read_json
from pipelines.recaption import RecaptionConfig, recaption
from pipelines.rows import load_selection, read_rows
from pipelines.rules import Rules
from pipelines.select import named_selection
from pipelines.sources import InputError, plan
from pipelines.why import why
from showo2.tiny.render import render
from showo2.tiny.sources import Options, write_sources
from showo2.tiny.world import draw_scene
from tests.pipelines.conftest import write_tar
from tests.s3 import store

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket on a server of our own; its address and keys stand in the environment."""
    with store("pictures") as client:
        yield client


@pytest.mark.timeout(240)
def test_the_job_reads_from_and_writes_to_s3(planted, bucket):
    for path in sorted(planted.folder.iterdir()):
        bucket.upload_file(str(path), "pictures", f"web/{path.name}")
    out = "s3://pictures/data"
    command = [sys.executable, "-m", "jobs.curate", "--source", "web=s3://pictures/web/*.tar", "--out", out]
    done = subprocess.run(
        command, cwd=PROJECT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_json(out, "report.json")["sources"] == {"web": planted.counts}
    (path := planted.folder.parent / "ledger.parquet").write_bytes(read_bytes(out, "ledger.parquet"))
    assert len(pq.read_table(path)) == len(planted.accounts)
    selection = load_selection(out)
    rows = [row for unit in selection.units for row in read_rows(out, unit).to_pylist()]
    assert len(rows) == planted.counts["kept"] and rows[0]["tar"] == "s3://pictures/web/00000.tar"
    listed = bucket.list_objects_v2(Bucket="pictures")["Contents"]
    assert not [entry["Key"] for entry in listed if entry["Key"].endswith(".tmp")]


def test_what_is_not_there_is_named(bucket):
    with pytest.raises(InputError, match=r"no tar matches s3://pictures/\*\.tar"):
        plan(["web=s3://pictures/*.tar"])
    with pytest.raises(InputError, match=r"s3://pictures/nothing\.tar does not exist"):
        plan(["web=s3://pictures/nothing.tar"])
    with pytest.raises(InputError, match="foo://x/y.tar cannot be opened"):
        plan(["web=foo://x/y.tar"])


def test_scores_near_copies_selections_and_stories_on_s3(bucket):
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((600, 560)) for _ in range(3)]
    files = [encoded(picture) for picture in (*pictures, pictures[0].resize((540, 512)))]
    members = [(f"{number}.jpg", data) for number, data in enumerate(files)]
    members += [(f"{number}.txt", f"a picture of colours, number {number}".encode()) for number in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        write_tar(Path(folder) / "few.tar", members)
        bucket.upload_file(f"{folder}/few.tar", "pictures", "few.tar")
    out = "s3://pictures/scored"
    config = CurateConfig(("few=s3://pictures/few.tar",), out, score=("pixels", "text"), workers=0,
                          dedup=Dedup(near_pictures=True))  # fmt: skip
    assert curate(config).total == {"duplicate": 1, "kept": 3}
    report = named_selection(out, "english", Rules(languages=("en",), min_side=550), workers=0)
    assert report["counts"] == {"kept": 3} and load_selection(out, "english").units[0].rows == 3
    story = "\n".join(why(out, "few/3"))
    assert "a near copy" in story and "540 x 512" in story


def test_captions_and_latents_on_s3_are_the_bytes_that_they_are_on_disk_whatever_was_lost(bucket, tmp_path):
    rng = random.Random(3)
    for tar in range(2):
        members = []
        for number in range(3):
            render(draw_scene(rng), 512).save(buffer := io.BytesIO(), "jpeg")
            members += [(f"{tar}{number}.jpg", buffer.getvalue()), (f"{tar}{number}.txt", b"IMG_0231")]
        write_tar(tmp_path / f"{tar}.tar", members)
        bucket.upload_file(str(tmp_path / f"{tar}.tar"), "pictures", f"shapes/{tar}.tar")
    write_sources(Options(tmp_path, pictures=5, stories=2, workers=1))
    bucket.upload_file(str(tmp_path / "stories" / "00000.tar"), "pictures", "stories/0.tar")
    remote, local = "s3://pictures/captioned", str(tmp_path / "data")

    def job(out: str) -> None:
        sources = ("web=s3://pictures/shapes/*.tar", "stories:omnicorpus=s3://pictures/stories/*.tar")
        assert curate(CurateConfig(sources, out, workers=0)).total == {"kept": 8}
        assert recaption(RecaptionConfig(out, workers=0)).counts == {"kept": 2, "stop": 6}
        assert encode(EncodeConfig(out, workers=0)).rows == 8

    def stored() -> dict[str, bytes]:
        listed = bucket.list_objects_v2(Bucket="pictures", Prefix="captioned/")["Contents"]
        names = [entry["Key"].removeprefix("captioned/") for entry in listed]
        return {name: read_bytes(remote, name) for name in names if not told(name)}

    def told(name: str) -> bool:
        """Files that speak of the run: its time, its folders."""
        return "report" in name or name.removesuffix(".json") in ("curate", "recaption", "encode")

    job(local)
    on_disk = {str(path.relative_to(local)): path.read_bytes() for path in Path(local).rglob("*") if path.is_file()}
    on_disk = {name: data for name, data in on_disk.items() if not told(name)}
    job(remote)
    assert stored() == on_disk
    # What a killed job has not done yet, and a file that somebody deleted: the next run makes them again.
    units = [name for name in on_disk if name.startswith("units/captions/")]
    shards = [name for name in on_disk if name.endswith(".arrow")]
    assert len(units) == 3 and len(shards) > 3
    for name in (units[0], shards[0]):
        bucket.delete_object(Bucket="pictures", Key=f"captioned/{name}")
    job(remote)
    assert stored() == on_disk
