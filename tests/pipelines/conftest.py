"""Small WebDataset sources with planted trouble, and what the ledger must say about each row."""

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (600, 520)) -> bytes:
    """A JPEG that no other seed gives."""
    image = Image.new("RGB", size, ((seed * 37) % 256, (seed * 91) % 256, (seed * 13) % 256))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", comment=b"%d" % seed)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar as img2dataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@dataclass
class Planted:
    """A source on disk and the account of each of its rows."""

    folder: Path
    accounts: dict[str, str] = field(
        default_factory=dict
    )  # key -> kept, dropped:reason, failed:class, duplicate

    @property
    def counts(self) -> dict[str, int]:
        """Rows by account."""
        values = list(self.accounts.values())
        return {account: values.count(account) for account in sorted(set(values))}


def _rows(number: int, rows: int) -> list[tuple[str, str, bytes | None, bytes | None]]:
    """(key, account, picture, caption) of one tar; the first one has a row of every trouble."""
    good = [(number * 10_000 + row, f"{number:03d}{row:04d}") for row in range(rows)]
    result = [(key, "kept", picture(seed), f"picture {seed}".encode()) for seed, key in good]
    if number:
        return result
    whole = picture(77_777)
    return [
        *result,
        ("0008001", "dropped:too_small", picture(8001, (511, 900)), b"small"),
        ("0008002", "dropped:missing_caption", picture(8002), b"  \n"),
        ("0008003", "dropped:missing_caption", picture(8003), None),
        ("0008004", "failed:truncated", whole[: len(whole) // 2], b"cut picture"),
        ("0008005", "failed:empty_file", b"", b"no bytes"),
        ("0008006", "failed:not_an_image", b"<html>404</html>", b"a page"),
        ("0008007", "failed:caption_encoding", picture(8007), b"caf\xe9 \xff"),
        ("0008008", "failed:missing_image", None, b"alone"),
        # The smaller uid of the two stays, so tests count duplicates and do not ask which key it is.
        ("0008009", "duplicate", picture(1), b"a copy of 0000001"),
    ]


def _plant(folder: Path, tars: int, rows: int) -> Planted:
    """`tars` tars of `rows` good rows each; the first has all troubles, the last is cut in its last picture."""
    planted = Planted(folder)
    for number in range(tars):
        members = []
        for key, account, image, text in _rows(number, rows):
            planted.accounts[key] = account
            members += [
                (f"{key}.{e}", data) for e, data in (("jpg", image), ("txt", text)) if data is not None
            ]
        write_tar(folder / f"{number:05d}.tar", members)
    _cut(path=folder / f"{tars - 1:05d}.tar", planted=planted, last=f"{tars - 1:03d}{rows - 1:04d}")
    return planted


def _cut(path: Path, planted: Planted, last: str) -> None:
    """End the file in the middle of the last picture."""
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{last}.jpg")
        end = member.offset_data + member.size // 2
    path.write_bytes(path.read_bytes()[:end])
    planted.accounts[last] = "failed:tar_cut"


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Three tars of a source named web, with one row of every trouble."""
    return _plant(tmp_path_factory.mktemp("web"), tars=3, rows=40)
