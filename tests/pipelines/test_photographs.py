"""Real photographs: those that scikit-image ships, as a WebDataset source with captions of our own."""

import contextlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from pipelines.curate import CurateConfig, curate
from pipelines.rows import MediaReader, load_selection, open_picture, read_rows
from tests.pipelines.conftest import write_tar

CAPTIONS = {
    "astronaut.png": "an astronaut in an orange suit before a flag",
    "brick.png": "a wall of bricks",
    "camera.png": "a man behind a camera on a tripod",
    "chelsea.png": "a tabby cat looks into the camera",
    "coffee.png": "a cup of coffee on a saucer with a spoon",
    "color.png": "a chart of colours",
    "grass.png": "a lawn from above",
    "hubble_deep_field.jpg": "galaxies in a dark sky",
    "ihc.png": "stained cells under a microscope",
    "logo.png": "the logo of a software library",
    "moon.png": "craters of the moon",
    "no_time_for_that_tiny.gif": "a tiny animation of a dog",
    "retina.jpg": "the back of an eye",
    "rocket.jpg": "a rocket on its launch pad",
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """The source: one tar of picture and text members."""
    folder = Path(skimage.data.__file__).parent
    path = tmp_path_factory.mktemp("photographs") / "00000.tar"
    members = []
    for name, caption in CAPTIONS.items():
        stem, extension = name.split(".")
        members += [(f"{stem}.{extension}", (folder / name).read_bytes()), (f"{stem}.txt", caption.encode())]
    write_tar(path, members)
    return path


def test_small_photographs_are_dropped_with_that_reason(photographs, tmp_path, ray_session):
    report = curate(CurateConfig((f"photographs={photographs}",), str(tmp_path)))
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "ledger.parquet").to_pylist()}
    folder = Path(skimage.data.__file__).parent
    for name in CAPTIONS:
        with Image.open(folder / name) as image:
            small = min(image.size) < 512
        row = rows[name.split(".")[0]]
        assert (row["outcome"], row["reason"]) == (("dropped", "too_small") if small else ("kept", None)), (
            name
        )
    assert report.counts == {"photographs": {"dropped:too_small": 6, "kept": 8}}
    assert report.total["kept"] + report.total["dropped:too_small"] == len(CAPTIONS) == report.rows

    (unit,) = load_selection(str(tmp_path)).units
    with contextlib.closing(MediaReader(unit.unit.path)) as media:
        for row in read_rows(str(tmp_path), unit).to_pylist():
            image = open_picture(media.read(row["offset"], row["size"]))
            assert image.mode == "RGB" and image.size == (row["width"], row["height"])
            assert row["text"] in CAPTIONS.values()
