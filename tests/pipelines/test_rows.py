"""Opening pictures: RGB, upright, within budget, and a class where it cannot be."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.probe import ProbeError
from pipelines.rows import MediaReader, load_selection, open_picture, read_table
from pipelines.sources import InputError


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_transparent_is_white_and_sixteen_bits_are_scaled():
    clear = encoded(Image.new("RGBA", (4, 4), (10, 20, 30, 0)))
    assert open_picture(clear).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert open_picture(encoded(deep)).getpixel((0, 0)) == (127, 127, 127)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(encoded(Image.new("RGB", (40, 20)), "jpeg", exif=exif)).size == (20, 40)
    assert open_picture(encoded(Image.new("RGB", (40, 20)), "jpeg", exif=b"Exif\0\0II*\0\xff")).size == (
        40,
        20,
    )


@pytest.mark.parametrize("size", [(800, 600), (600, 800), (512, 512)])
def test_a_needed_side_makes_jpegs_decode_small_but_never_too_small(size):
    image = open_picture(encoded(Image.new("RGB", size), "jpeg"), side=64)
    assert 64 <= min(image.size) < min(size) / 2


def test_classes():
    whole = encoded(Image.effect_noise((300, 300), 90), "jpeg")
    with pytest.raises(ProbeError) as caught:
        open_picture(whole[: len(whole) // 2])
    assert caught.value.error == "undecodable"
    with pytest.raises(ProbeError) as caught:
        open_picture(whole, max_pixels=1000)
    assert caught.value.error == "too_many_pixels"


def test_a_tar_that_shrank_is_told(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    media = MediaReader(str(path))
    assert media.read(2, 3) == b"234"
    with pytest.raises(EOFError, match="changed after curation"):
        media.read(8, 5)
    media.close()


def test_a_folder_without_a_selection_is_told(tmp_path):
    with pytest.raises(InputError, match=r"run jobs\.curate"):
        load_selection(str(tmp_path))


def test_a_column_that_an_earlier_version_did_not_write_is_told(tmp_path):
    pq.write_table(pa.table({"uid": ["a"], "row": [0]}), tmp_path / "facts.parquet")
    assert read_table(str(tmp_path), "facts.parquet", ["row"]).to_pylist() == [{"row": 0}]
    with pytest.raises(InputError, match=r"facts.parquet has no seconds, hash: .* run jobs.curate on its sources again"):
        read_table(str(tmp_path), "facts.parquet", ["row", "seconds", "hash"])
