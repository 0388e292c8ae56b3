"""The tolerant tar reader: all good members of any damaged file, every damage named, nothing ever raised."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tar import BLOCK, Damage, Member, Refused, TarReader, split_key, unsafe

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def archive(files: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of the given members, written by the standard library."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(data: bytes) -> tuple[list[Member], list[Refused], list[Damage]]:
    """Everything the reader says, sorted by type."""
    items = list(TarReader(io.BytesIO(data)))
    return tuple([i for i in items if isinstance(i, kind)] for kind in (Member, Refused, Damage))


FILES = [
    (f"{i:03d}.{extension}", bytes([i]) * (300 * i + 700)) for i in range(6) for extension in ("jpg", "txt")
]


@pytest.mark.parametrize("form", FORMATS)
def test_agrees_with_tarfile(form):
    files = [*FILES, ("long/" * 60 + "name.jpg", b"x"), ("größe.txt", "ä".encode()), ("empty.txt", b"")]
    files = files if form != tarfile.USTAR_FORMAT else [f for f in files if len(f[0]) < 100]
    data = archive(files, form)
    members, refused, damages = read(data)
    assert [(m.name, m.data) for m in members] == files and not refused and not damages
    assert all(data[m.offset : m.offset + m.size] == m.data for m in members)


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_keeps_all_whole_members_and_is_named(form):
    data = archive(FILES, form)
    whole, _, _ = read(data)
    end = whole[-1].offset + whole[-1].size
    for cut in [*range(0, end, 97), *(m.offset for m in whole), *(m.offset + m.size for m in whole)]:
        members, _, damages = read(data[:cut])
        assert members == [m for m in whole if m.offset + m.size <= cut]
        assert len(damages) == 1, cut
        assert damages[0].kind in ("empty", "not_a_tar", "cut", "no_end")
    assert read(data[:0])[2][0].kind == "empty"


def test_cut_names_the_member_and_no_end_the_last_good_one():
    data = archive(FILES)
    third = read(data)[0][2]
    cut = read(data[: third.offset + 5])[2][0]
    assert cut.kind == "cut" and cut.name == "001.jpg" and "001.jpg" in cut.describe()
    boundary = read(data[: third.offset - BLOCK])[2][0]
    assert boundary.kind == "no_end" and boundary.name == "000.txt"


def test_bad_header_in_the_middle_loses_one_member_only():
    data = bytearray(archive(FILES))
    victim = read(bytes(data))[0][4]
    data[victim.offset - BLOCK + 3] ^= 0xFF
    members, _, damages = read(bytes(data))
    assert [m.name for m in members] == [name for name, _ in FILES if name != victim.name]
    assert [d.kind for d in damages] == ["bad_header"]
    assert damages[0].start == victim.offset - BLOCK and damages[0].stop >= victim.offset + victim.size


def test_header_of_zeros_in_the_middle_is_no_silent_end():
    data = bytearray(archive(FILES))
    victim = read(bytes(data))[0][4]
    data[victim.offset - BLOCK : victim.offset] = bytes(BLOCK)
    members, _, damages = read(bytes(data))
    assert len(members) == len(FILES) - 1 and [d.kind for d in damages] == ["early_end"]


@pytest.mark.parametrize("junk", [b"\x1f\x8b" + b"gzip" * 500, b"<html>not found</html>", b"\xff" * 4096])
def test_garbage(junk):
    assert [d.kind for d in read(junk)[2]] == ["not_a_tar"]


def test_an_empty_archive_is_no_damage():
    assert read(archive([])) == ([], [], [])


def test_links_and_names_that_leave_the_folder_are_refused():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("../up.jpg", "/etc/passwd.txt", "a/../../b.jpg", "fine.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    members, refused, damages = read(buffer.getvalue())
    assert [m.name for m in members] == ["fine.jpg"] and not damages
    assert [r.reason for r in refused] == ["unsafe name"] * 3 + ["link or special file"]


def test_large_members_are_passed_over():
    items = list(TarReader(io.BytesIO(archive(FILES)), limit=1000))
    assert [m.data is None for m in items] == [len(data) > 1000 for _, data in FILES]


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_never_raises_on_noise(noise):
    list(TarReader(io.BytesIO(noise)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 20 * BLOCK), st.binary(min_size=1, max_size=40))
def test_never_raises_and_never_invents_on_overwritten_archives(at, patch):
    data = bytearray(archive(FILES))
    data[at : at + len(patch)] = patch
    members, _, _ = read(bytes(data))
    assert all(bytes(data[m.offset : m.offset + m.size]) == m.data for m in members)


def test_split_key_and_unsafe():
    assert split_key("a/b.c.JPG") == ("a/b", "c.jpg")
    assert split_key("b") == ("b", "")
    assert unsafe("C:\\x") and unsafe("a\nb") and not unsafe("a..b/c.jpg")
