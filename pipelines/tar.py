"""A tolerant, streaming tar reader: every good member of a damaged file, and a name for every damage.

Python's tarfile stops at the first bad header and says nothing about an archive that was cut between two
members, and so do the readers built on it. This one goes on at the next valid header and reports what it had
to leave out. It never extracts: members are byte ranges of the archive.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
ZERO = bytes(BLOCK)
_SKIP_CHUNK = 1 << 20
_EXTENDED_LIMIT = 1 << 20  # bytes of a long name or a pax header: more is an attack or a misread
_UNSAFE = re.compile(r"\A[/\\]|\A[A-Za-z]:|(?:\A|[/\\])\.\.(?:[/\\]|\Z)|[\x00-\x1f]")
_PAX_RECORD = re.compile(rb"(\d+) ([^=]+)=")
_REGULAR, _CONTIGUOUS, _DIRECTORY = "0", "7", "5"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = "L", "K", "x", "g"
_WITHOUT_DATA = "123456"  # links, devices, folders: whatever their size says
_KNOWN = _REGULAR + _CONTIGUOUS + _WITHOUT_DATA + _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL + "DSMV"


@dataclass(frozen=True)
class Member:
    """One regular file: its content and where it lies in the archive (`offset` and `size` in bytes).

    `data` is None where the member is larger than the reader's limit.
    """

    name: str
    offset: int
    size: int
    data: bytes | None


@dataclass(frozen=True)
class Refused:
    """A member that is not read: a link, a device, or a name that leaves the archive's folder."""

    name: str
    offset: int
    reason: str


@dataclass(frozen=True)
class Damage:
    """A part of the archive that could not be read, as bytes [start, stop).

    `kind` is one of: empty (no bytes), not_a_tar (no valid header at all), bad_header (unreadable up to the
    next valid header), cut (the file ends inside a member, `name`), no_end (the file ends after the member
    `name` without an end marker, so members may be missing), early_end (an end marker, and then more).
    """

    kind: str
    start: int
    stop: int
    name: str = ""

    def describe(self) -> str:
        """One sentence for ledgers and messages."""
        where = f"bytes {self.start} to {self.stop}"
        return {
            "empty": "the file is empty",
            "not_a_tar": f"no tar header in the file ({where})",
            "bad_header": f"unreadable header: {where} are lost, after {self.name or 'the start'}",
            "cut": f"the file ends inside {self.name}, which should end at byte {self.stop}",
            "no_end": f"the file ends after {self.name} without an end marker: members may be missing",
            "early_end": f"an end marker, and then more data ({where})",
        }[self.kind]


@dataclass(frozen=True)
class _Header:
    name: str
    size: int
    kind: str


def split_key(name: str) -> tuple[str, str]:
    """WebDataset's (key, extension): the path up to the first dot of its last part, and the rest, lower case.

    >>> split_key("./000/0001.seg.png")
    ('000/0001', 'seg.png')
    """
    folder, base = os.path.split(name.removeprefix("./"))
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def unsafe(name: str) -> bool:
    """True for a name that is absolute, climbs out of its folder or holds control characters."""
    return _UNSAFE.search(name) is not None


def _number(field: bytes) -> int:
    """A header's number: octal text, or base 256 where the first bit is set. ValueError if it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.split(b"\0")[0].strip()
    return int(text, 8) if text else 0


def _parse(block: bytes) -> _Header | None:
    """The header in a 512-byte block, or None if its checksum or a field is wrong."""
    try:
        stored = _number(block[148:156])
        # The checksum is the sum of all bytes, its own field counted as spaces.
        if stored != sum(block) - sum(block[148:156]) + 8 * 32:
            return None
        size = _number(block[124:136])
    except ValueError:
        return None
    kind = chr(block[156]) if block[156] else _REGULAR
    name = block[:100].split(b"\0")[0].decode("utf-8", "backslashreplace")
    prefix = block[345:500].split(b"\0")[0].decode("utf-8", "backslashreplace")
    if block[257:263] == b"ustar\0" and prefix:
        name = f"{prefix}/{name}"
    return _Header(name, size, kind) if kind in _KNOWN else None


def _pax_fields(data: bytes) -> dict[str, str]:
    """Records of the form LENGTH KEY=VALUE; what does not parse is left out."""
    fields = {}
    position = 0
    while match := _PAX_RECORD.match(data, position):
        length = int(match.group(1))
        if length <= 0 or position + length > len(data):
            break
        value = data[match.end() : position + length - 1]
        fields[match.group(2).decode("utf-8", "replace")] = value.decode("utf-8", "backslashreplace")
        position += length
    return fields


class TarReader:
    """Iterate over the members, refusals and damages of a tar in the order of their offsets.

    `file` is read once, forward only, so any stream will do; members above `limit` bytes are passed over with
    `data=None`. Never raises for what is in the archive; errors of the file system pass through.
    """

    def __init__(self, file: BinaryIO, limit: int = 512 << 20) -> None:
        self.file = file
        self.limit = limit
        self.position = 0
        self._last_name = ""
        self._long_name: str | None = None
        self._pax: dict[str, str] = {}

    def _read(self, size: int) -> bytes:
        data = self.file.read(size)
        while len(data) < size and (more := self.file.read(size - len(data))):
            data += more
        self.position += len(data)
        return data

    def _skip(self, size: int) -> bool:
        """Pass over `size` bytes; False if the file ends before."""
        while size > 0:
            got = len(self._read(min(size, _SKIP_CHUNK)))
            if not got:
                return False
            size -= got
        return True

    def __iter__(self) -> Iterator[Member | Refused | Damage]:
        while True:
            start = self.position
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                yield self._end_of_file(start, block)
                return
            header = _parse(block)
            if header is None:
                damage, header = self._resynchronise(start, zeros=block == ZERO)
                if damage is not None:
                    yield damage
                if header is None:
                    return
            result = self._member(header)
            if result is not None:
                yield result
            if isinstance(result, Damage):
                return

    def _end_of_file(self, start: int, block: bytes) -> Damage:
        kind = "no_end" if start else "not_a_tar" if block else "empty"
        return Damage(kind, start, self.position, self._last_name)

    def _resynchronise(self, start: int, zeros: bool) -> tuple[Damage | None, _Header | None]:
        """Go on, block by block, to the next valid header or the end of the file.

        `zeros` says that the block at `start` is one of zeros: with nothing but zeros behind it, that is the
        end marker and no damage. Only headers with the ustar magic count, so that no pixels pass for one.
        """
        self._long_name, self._pax = None, {}
        kind = "early_end" if zeros else "bad_header" if start else "not_a_tar"
        while True:
            here = self.position
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                zeros = zeros and not any(block)
                return None if zeros else Damage(kind, start, self.position, self._last_name), None
            header = _parse(block) if block[257:262] == b"ustar" else None
            if header is not None:
                kind = "bad_header" if kind == "not_a_tar" else kind
                return Damage(kind, start, here, self._last_name), header
            zeros = zeros and block == ZERO

    def _member(self, header: _Header) -> Member | Refused | Damage | None:
        """Consume what `header` announces; None for directories and for headers about other headers."""
        if header.kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            return self._extended(header)
        name = self._pax.get("path") or self._long_name or header.name
        size = int(self._pax["size"]) if self._pax.get("size", "").isdigit() else header.size
        self._long_name, self._pax = None, {}
        offset = self.position
        if header.kind in _WITHOUT_DATA:
            size = 0
        if size > self.limit:
            data, whole = None, self._skip(size)
        else:
            data = self._read(size)
            whole = len(data) == size
        if not whole:
            return Damage("cut", offset, offset + size, name)
        self._read(-size % BLOCK)
        self._last_name = name
        if header.kind == _DIRECTORY or name.endswith("/"):
            return None
        if header.kind not in (_REGULAR, _CONTIGUOUS):
            return Refused(name, offset, "link or special file")
        if unsafe(name):
            return Refused(name, offset, "unsafe name")
        return Member(name, offset, size, data)

    def _extended(self, header: _Header) -> Damage | None:
        """A header that renames or resizes the next member."""
        offset = self.position
        padded = header.size + -header.size % BLOCK
        data = self._read(padded) if padded <= _EXTENDED_LIMIT else b""
        if len(data) < padded and (data or not self._skip(padded)):
            return Damage("cut", offset, offset + header.size, header.name)
        data = data[: header.size]
        if header.kind == _LONG_NAME:
            self._long_name = data.rstrip(b"\0").decode("utf-8", "backslashreplace")
        elif header.kind == _PAX:
            self._pax = _pax_fields(data)
        return None
