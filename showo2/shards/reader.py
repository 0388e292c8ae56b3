"""Reading shards at random rows: one pread a row, straight into the memory that becomes its tensor.

Where latents lie and what is known of each row (50 to 120 bytes) is read once, when a shard is opened; nothing parses
Arrow on the way to a latent after that. `os.preadv` has no position and releases the interpreter lock, so one reader
serves any number of threads, also on a cold page cache.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from showo2.shards.format import UID_BYTES, Bucket, DamagedRow, ShardError, ShardSchema, TextRow
from showo2.shards.remote import is_remote, local_copy


@dataclass(frozen=True, slots=True)
class Row:
    """One sample.

    latents: (C, T, h, w) float16, normalised mean. crop: left, top, right, bottom in the original. times: of a clip's
    frames, seconds from the video's start; empty for pictures.
    """

    uid: str
    source: str
    kind: str
    latents: Tensor
    text: TextRow
    width: int
    height: int
    crop: tuple[int, int, int, int]
    teacher: bytes | None = None
    times: tuple[float, ...] = ()


def local_path(path: str) -> str:
    """The path of a file that pread can open: of `path` itself, or of its copy in the cache."""
    path = os.fspath(path)
    if is_remote(path):
        return local_copy(path)
    if not os.path.isfile(path):
        raise ShardError(f"{path} is missing; run jobs.encode again (it makes only what is not there)")
    return path


def _arrow(path: str, local: str) -> tuple[pa.Buffer, pa.ipc.RecordBatchFileReader]:
    try:
        with pa.memory_map(local) as file:
            mapped = file.read_buffer()
        return mapped, pa.ipc.open_file(mapped)
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"{path} is damaged ({error}); delete it and run jobs.encode again") from error


class _Fixed:
    """An open Arrow IPC file of fixed-width columns.

    offsets: byte of the file where each row's latents begin. uids: 16 bytes a row. sizes (rows, 2), crops (rows, 4),
    times (rows, frames; none for pictures): see `Row`.
    """

    def __init__(self, path: str):
        local = local_path(path)
        mapped, arrow = _arrow(path, local)
        batches = [arrow.get_batch(i) for i in range(arrow.num_record_batches)]
        self.schema = ShardSchema.of(arrow.schema, path)
        self.row_bytes, self.shape = self.schema.row_bytes, self.schema.shape
        self.batch_rows = batches[0].num_rows if batches else 1
        self.rows = sum(batch.num_rows for batch in batches)
        if any(batch.num_rows != self.batch_rows for batch in batches[:-1]):
            raise ShardError(f"{path} has batches of different lengths; write shards with showo2.shards")
        self.lengths = [batch.num_rows for batch in batches]
        # A memoryview gives Python's int at once, where numpy makes a number of its own first.
        self.offsets = np.concatenate([np.empty(0, np.int64), *[
            _values(batch, "latents").address - mapped.address + self.row_bytes * np.arange(batch.num_rows)
            for batch in batches]]).data
        self.uids = b"".join(_values(batch, "uid").to_pybytes()[:UID_BYTES * batch.num_rows] for batch in batches)
        self.checksums = _column(batches, "checksum", "<u8", 1).ravel().data
        self.sizes = np.concatenate([_column(batches, name, "<i4", 1) for name in ("width", "height")], 1)
        self.crops = _column(batches, "crop", "<i4", 4)
        frames = self.schema.frames if self.schema.timed else 0
        self.times = _column(batches, "times", "<f4", frames) if frames else np.empty((self.rows, 0), "<f4")
        self.descriptor = os.open(local, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def uid(self, i: int) -> str:
        return self.uids[UID_BYTES * i:UID_BYTES * (i + 1)].hex()


def _values(batch: pa.RecordBatch, name: str) -> pa.Buffer:
    return batch.column(name).buffers()[-1]


def _column(batches: list[pa.RecordBatch], name: str, dtype: str, width: int) -> NDArray[Any]:
    """A copy of a fixed-width column: (rows, width)."""
    parts = [np.frombuffer(_values(batch, name), dtype, batch.num_rows * width) for batch in batches]
    return np.concatenate([np.empty(0, dtype), *parts]).reshape(-1, width)


class _Sidecar:
    """One batch of a sidecar: uid, columns of variable length, checksum. Four times faster than Arrow's scalars."""

    def __init__(self, batch: pa.RecordBatch):
        self._uids = _values(batch, "uid")  # Holds the mapped file.
        self._uid_bytes = memoryview(self._uids)
        self.checksums = memoryview(_values(batch, "checksum")).cast("B").cast("Q")
        names = batch.schema.names[1:-1]
        self._columns = [tuple(memoryview(buffer).cast("B") for buffer in batch.column(name).buffers()[1:])
                         for name in names]
        self._columns = [(offsets.cast("i"), data) for offsets, data in self._columns]

    def uid(self, row: int) -> str:
        return self._uid_bytes[UID_BYTES * row:UID_BYTES * (row + 1)].hex()

    def values(self, row: int) -> list[memoryview]:
        return [data[offsets[row]:offsets[row + 1]] for offsets, data in self._columns]


class ShardReader:
    """Rows of one shard by number. Cheap to make and to pickle: files are opened at the first read.

    `verify` checks every row's checksum (xxh3, faster than memory) and raises DamagedRow where it fails.
    """

    def __init__(self, path: str, text_path: str | None = None, teacher_path: str | None = None,
                 verify: bool = True):
        self.path, self.text_path, self.teacher_path = os.fspath(path), text_path, teacher_path
        self.verify = verify
        self._lock = threading.Lock()
        self._opened: _Fixed | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("path", "text_path", "teacher_path", "verify")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def _fixed(self) -> _Fixed:
        if self._opened is None:
            with self._lock:
                self._opened = self._opened or _Fixed(self.path)
        return self._opened

    @cached_property
    def _texts(self) -> list[_Sidecar]:
        return self._sidecar(self.text_path, "text")

    @cached_property
    def _teachers(self) -> list[_Sidecar]:
        return self._sidecar(self.teacher_path, "teacher")

    def _sidecar(self, path: str | None, name: str) -> list[_Sidecar]:
        if path is None:
            raise ShardError(f"{self.path} was opened without its {name} file; encode with one, or name it")
        _, arrow = _arrow(path, local_path(path))
        batches = [arrow.get_batch(i) for i in range(arrow.num_record_batches)]
        if [batch.num_rows for batch in batches] != self._fixed.lengths:
            rows = sum(batch.num_rows for batch in batches)
            raise ShardError(f"{path} has {rows} rows, but {self.path} has {self.rows}; re-run jobs.encode")
        return [_Sidecar(batch) for batch in batches]

    @property
    def schema(self) -> ShardSchema:
        """What holds for every row."""
        return self._fixed.schema

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's latents."""
        return self._fixed.row_bytes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one row's latents."""
        return self._fixed.shape

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._fixed.rows

    @property
    def bucket(self) -> Bucket:
        """Latent frames, height and width."""
        return self._fixed.schema.bucket

    @property
    def evicted(self) -> bool:
        """Whether the cache has given up the file: its space is free once this reader is gone."""
        return self._opened is not None and os.fstat(self._opened.descriptor).st_nlink == 0

    def __len__(self) -> int:
        return self.rows

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < self._fixed.rows:
            raise IndexError(f"row {i} of {self.path}, which has {self._fixed.rows}")
        return divmod(i, self._fixed.batch_rows)

    def latents_into(self, i: int, out: memoryview) -> None:
        """Read row i's latents, 0 <= i < rows, into `out`, `schema.row_bytes` bytes. Raises DamagedRow."""
        fixed = self._fixed
        # Rows of text alone have no latents, and Arrow no place for them.
        read = os.preadv(fixed.descriptor, (out,), fixed.offsets[i]) if fixed.row_bytes else 0
        if read != fixed.row_bytes or (self.verify and xxhash.xxh3_64_intdigest(out) != fixed.checksums[i]):
            raise DamagedRow(fixed.uid(i), i, self.path, "the latents do not match their checksum")

    def uid(self, i: int) -> str:
        """32 hex digits."""
        self._place(i)
        return self._fixed.uid(i)

    def latents(self, i: int) -> Tensor:
        """(C, T, h, w) float16; the tensor owns the only copy of the bytes."""
        self._place(i)
        data = np.empty(self.row_bytes // 2, np.float16)
        self.latents_into(i, data.view(np.uint8).data)
        return torch.from_numpy(data).view(self.shape)

    def text(self, i: int) -> TextRow:
        """The text of row i. Raises DamagedRow where its bytes do not match their checksum."""
        batch, row = self._place(i)
        sidecar = self._texts[batch]
        try:
            text = TextRow(sidecar.uid(row), *[str(value, "utf-8") for value in sidecar.values(row)])
        except UnicodeDecodeError as error:
            raise DamagedRow(sidecar.uid(row), i, str(self.text_path), "the text is not UTF-8") from error
        if self.verify and text.checksum() != sidecar.checksums[row]:
            raise DamagedRow(text.uid, i, str(self.text_path), "the text does not match its checksum")
        return text

    def teacher(self, i: int) -> bytes:
        """The teacher's picture of row i, a JPEG."""
        batch, row = self._place(i)
        sidecar = self._teachers[batch]
        [jpeg] = sidecar.values(row)
        same = xxhash.xxh3_64_intdigest(jpeg) == sidecar.checksums[row] if self.verify else True
        if sidecar.uid(row) != self.uid(i) or not same:
            raise DamagedRow(self.uid(i), i, str(self.teacher_path), "the picture does not match its checksum")
        return bytes(jpeg)

    def row(self, i: int, latents: Tensor, teacher: bool = False) -> Row:
        """Row i around its `latents`. Raises as `read`."""
        fixed, uid, text = self._fixed, self._fixed.uid(i), self.text(i)
        if text.uid != uid:
            raise DamagedRow(uid, i, str(self.text_path), f"the text there is of uid {text.uid}")
        jpeg = self.teacher(i) if teacher else None
        width, height = fixed.sizes[i].tolist()
        left, top, right, bottom = fixed.crops[i].tolist()
        return Row(uid, fixed.schema.source, fixed.schema.kind, latents, text, width, height,
                   (left, top, right, bottom), jpeg, tuple(fixed.times[i].tolist()))

    def read(self, i: int, teacher: bool = False) -> Row:
        """Row i, with the teacher's JPEG if asked for. Raises DamagedRow (names uid, shard) or ShardError."""
        return self.row(i, self.latents(i), teacher)
