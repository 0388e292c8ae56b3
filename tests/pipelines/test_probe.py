"""The header probe: Pillow's answer for every format and mode, and cut files told from whole ones."""

import io
import os
import struct
import zlib

import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.probe import ProbeError, probe

SAVES = [
    ("jpeg", "RGB", {}),
    ("jpeg", "RGB", {"progressive": True, "quality": 95}),
    ("jpeg", "L", {"optimize": True}),
    ("jpeg", "CMYK", {}),
    ("png", "RGB", {}),
    ("png", "L", {}),
    ("png", "1", {}),
    ("png", "P", {}),
    ("png", "LA", {}),
    ("png", "RGBA", {}),
    ("png", "I;16", {}),
    ("webp", "RGB", {}),
    ("webp", "RGB", {"lossless": True}),
    ("webp", "RGBA", {}),
    ("webp", "RGBA", {"lossless": True}),
    ("gif", "P", {}),
    ("bmp", "RGB", {}),
    ("tiff", "RGB", {}),
    ("ppm", "RGB", {}),
]
EXIF_FORMATS = ("jpeg", "png", "webp")


def encode(form: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> bytes:
    """A noisy picture in the given format."""
    noise = Image.effect_noise(size, 80)
    image = Image.merge("RGB", [noise] * 3).convert("RGBA" if mode == "RGBA" else "RGB")
    if mode == "RGBA":
        image.putalpha(noise)
    elif mode == "I;16":
        image = Image.new("I;16", size, 1000)
    elif mode == "LA":
        image = noise.convert("LA")
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SAVES), st.integers(1, 700), st.integers(1, 700))
def test_agrees_with_pillow(save, width, height):
    form, mode, options = save
    data = encode(form, mode, (width, height), **options)
    found = probe(data)
    image = Image.open(io.BytesIO(data))
    assert (found.format, found.width, found.height) == (image.format.lower(), *image.size)
    assert found.mode == image.mode or form == "gif"
    assert not found.animated and found.orientation == 1


@pytest.mark.parametrize("form", EXIF_FORMATS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert probe(encode(form, exif=exif.tobytes())).orientation == orientation


def test_broken_exif_loses_no_picture():
    data = encode("jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert probe(data).orientation == 1


@pytest.mark.parametrize("form", ["gif", "webp", "png"])
def test_animation(form):
    frames = [Image.new("RGB", (40, 30), (i, 0, 0)) for i in (10, 200, 90)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    assert probe(buffer.getvalue()).animated


@pytest.mark.parametrize("save", SAVES[:16], ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_every_cut_file_is_named(save, share):
    form, mode, options = save
    data = encode(form, mode, (200, 150), **options)
    with pytest.raises(ProbeError) as caught:
        probe(data[: int(len(data) * share)])
    assert caught.value.error in ("truncated", "not_an_image")


def test_an_end_marker_in_an_exif_thumbnail_does_not_make_a_cut_jpeg_whole():
    exif = b"Exif\0\0" + b"\xff\xd8 thumbnail \xff\xd9"
    data = encode("jpeg", exif=exif)
    probe(data)
    with pytest.raises(ProbeError, match="truncated"):
        probe(data[:-20])


def test_bytes_after_the_end_marker_are_no_damage():
    assert probe(encode("jpeg") + bytes(100)).width == 40


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "empty_file"),
        (b"<html>404</html>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not_an_image"),
        (bytes(1000), "not_an_image"),
        (b"\xff\xd8" + b"junk" * 100, "broken_header"),
        (b"\xff\xd8\xff", "truncated"),
    ],
)
def test_classes(data, error):
    with pytest.raises(ProbeError) as caught:
        probe(data)
    assert caught.value.error == error


def test_a_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb += struct.pack(">I", 0) + b"IDAT" + bytes(4) + bytes(4) + b"IEND" + bytes(4)
    with pytest.raises(ProbeError, match="too_many_pixels"):
        probe(bomb)
    with pytest.raises(ProbeError, match="too_many_pixels"):
        probe(b"P6 60000 60000 255\n")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([encode(f, m, **o) for f, m, o in SAVES]), st.integers(0, 300), st.binary(max_size=30))
def test_noise_in_a_header_gives_an_answer_or_a_class(data, at, patch):
    data = data[:at] + patch + data[at + len(patch) :]
    try:
        found = probe(data)
    except ProbeError as caught:
        assert caught.error
    else:
        assert found.width > 0 and found.height > 0


def test_real_photographs():
    folder = os.path.dirname(skimage.data.__file__)
    names = [name for name in sorted(os.listdir(folder)) if name.endswith((".png", ".jpg", ".gif"))]
    assert len(names) >= 20
    for name in names:
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            found = probe(file.read())
        with Image.open(path) as image:
            assert (found.width, found.height) == image.size, name
            assert found.mode == image.mode, name
