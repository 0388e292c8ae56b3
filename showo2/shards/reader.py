"""Reading shards at random rows: one small pread for what is known of a row, one for its latents, no copies.

Offsets come from the Arrow footer once; nothing parses Arrow on the way to a latent after that. `os.pread`
has no position and releases the interpreter lock, so one reader serves any number of threads, also on a cold
page cache.
"""

from __future__ import annotations

import os
import struct
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

_HEAD = {"uid": "16s", "width": "<i", "height": "<i", "crop": "<4i", "checksum": "<Q"}
_LATENTS = len(_HEAD)


@dataclass(frozen=True, slots=True)
class Row:
    """One sample. latents: (C, T, h, w) float16, normalised mean. crop: left, top, right, bottom."""

    uid: str
    source: str
    kind: str
    latents: Tensor
    text: TextRow
    width: int
    height: int
    crop: tuple[int, int, int, int]
    teacher: bytes | None = None


def local_path(path: str) -> str:
    """The path of a file that pread can open; the one place that remote shards will pass through."""
    path = os.fspath(path)
    if "://" in path:
        raise ShardError(f"{path}: shards are read from local disks; copy the folder there first")
    if not os.path.isfile(path):
        raise ShardError(f"{path} is missing; run jobs.encode again (it makes only what is not there)")
    return path


def _arrow(path: str) -> tuple[pa.Buffer, pa.ipc.RecordBatchFileReader]:
    try:
        with pa.memory_map(local_path(path)) as file:
            mapped = file.read_buffer()
        return mapped, pa.ipc.open_file(mapped)
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"{path} is damaged ({error}); delete it and run jobs.encode again") from error


class _Fixed:
    """An open Arrow IPC file of fixed-width columns; `starts` (batches, columns) are their byte offsets."""

    def __init__(self, path: str):
        mapped, arrow = _arrow(path)
        batches = [arrow.get_batch(i) for i in range(arrow.num_record_batches)]
        self.schema = ShardSchema.of(arrow.schema, path)
        self.batch_rows = batches[0].num_rows if batches else 1
        self.rows = sum(batch.num_rows for batch in batches)
        if any(batch.num_rows != self.batch_rows for batch in batches[:-1]):
            raise ShardError(f"{path} has batches of different lengths; write shards with showo2.shards")
        starts = [[column.buffers()[-1].address - mapped.address for column in batch] for batch in batches]
        self.starts: NDArray[np.int64] = np.array(starts, np.int64).reshape(len(batches), _LATENTS + 1)
        self.descriptor = os.open(local_path(path), os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


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
    def _texts(self) -> list[pa.RecordBatch]:
        return self._sidecar(self.text_path, "text")

    @cached_property
    def _teachers(self) -> list[pa.RecordBatch]:
        return self._sidecar(self.teacher_path, "teacher")

    def _sidecar(self, path: str | None, name: str) -> list[pa.RecordBatch]:
        if path is None:
            raise ShardError(f"{self.path} was opened without its {name} file; encode with one, or name it")
        _, arrow = _arrow(path)
        batches = [arrow.get_batch(i) for i in range(arrow.num_record_batches)]
        if [b.num_rows for b in batches] != [self._batch_length(i) for i in range(len(self._fixed.starts))]:
            rows = sum(batch.num_rows for batch in batches)
            raise ShardError(f"{path} has {rows} rows, but {self.path} has {self.rows}; re-run jobs.encode")
        return batches

    def _batch_length(self, batch: int) -> int:
        return min(self._fixed.batch_rows, self.rows - batch * self._fixed.batch_rows)

    @property
    def schema(self) -> ShardSchema:
        """What holds for every row."""
        return self._fixed.schema

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._fixed.rows

    @property
    def bucket(self) -> Bucket:
        """Latent frames, height and width."""
        return self._fixed.schema.bucket

    def __len__(self) -> int:
        return self.rows

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < self._fixed.rows:
            raise IndexError(f"row {i} of {self.path}, which has {self._fixed.rows}")
        return divmod(i, self._fixed.batch_rows)

    def _head(self, i: int) -> tuple[str, int, int, tuple[int, int, int, int], int]:
        """uid, width, height, crop and checksum of row i."""
        batch, row = self._place(i)
        starts = self._fixed.starts[batch].tolist()
        data = os.pread(self._fixed.descriptor, starts[_LATENTS] - starts[0], starts[0])
        if len(data) < starts[_LATENTS] - starts[0]:
            raise ShardError(f"{self.path} was cut while it was open; run jobs.encode again")
        uid, width, height, crop, checksum = (
            struct.unpack_from(form, data, start - starts[0] + row * struct.calcsize(form))
            for form, start in zip(_HEAD.values(), starts[:_LATENTS], strict=True))
        return uid[0].hex(), width[0], height[0], crop, checksum[0]

    def _latents(self, i: int, uid: str, checksum: int) -> Tensor:
        batch, row = self._place(i)
        size = self._fixed.schema.row_bytes
        data = np.empty(size, np.uint8)
        start = int(self._fixed.starts[batch, _LATENTS]) + row * size
        read = os.preadv(self._fixed.descriptor, [data.data], start)
        if read != size or (self.verify and xxhash.xxh3_64_intdigest(data.data) != checksum):
            raise DamagedRow(uid, i, self.path, "the latents do not match their checksum")
        return torch.from_numpy(data).view(torch.float16).view(self._fixed.schema.shape)

    def uid(self, i: int) -> str:
        """32 hex digits."""
        return self._head(i)[0]

    def latents(self, i: int) -> Tensor:
        """(C, T, h, w) float16; the tensor owns the only copy of the bytes."""
        uid, *_, checksum = self._head(i)
        return self._latents(i, uid, checksum)

    def text(self, i: int) -> TextRow:
        """The text of row i. Raises DamagedRow where its bytes do not match their checksum."""
        batch, row = self._place(i)
        uid, *values, checksum = (column[row].as_py() for column in self._texts[batch])
        text = TextRow(uid.hex(), *values)
        if self.verify and text.checksum() != checksum:
            raise DamagedRow(text.uid, i, str(self.text_path), "the text does not match its checksum")
        return text

    def teacher(self, i: int) -> bytes:
        """The teacher's picture of row i, a JPEG."""
        return self._teacher(i, self.uid(i))

    def _teacher(self, i: int, uid: str) -> bytes:
        batch, row = self._place(i)
        owner, jpeg, checksum = (column[row].as_py() for column in self._teachers[batch])
        if owner.hex() != uid or (self.verify and xxhash.xxh3_64_intdigest(jpeg) != checksum):
            raise DamagedRow(uid, i, str(self.teacher_path), "the picture does not match its checksum")
        return jpeg

    def read(self, i: int, teacher: bool = False) -> Row:
        """Row i, with the teacher's JPEG if asked for. Raises DamagedRow (names uid, shard) or ShardError."""
        uid, width, height, crop, checksum = self._head(i)
        text = self.text(i)
        if text.uid != uid:
            raise DamagedRow(uid, i, str(self.text_path), f"the text there is of uid {text.uid}")
        latents = self._latents(i, uid, checksum)
        jpeg = self._teacher(i, uid) if teacher else None
        schema = self._fixed.schema
        return Row(uid, schema.source, schema.kind, latents, text, width, height, crop, jpeg)


assert struct.calcsize(_HEAD["uid"]) == UID_BYTES
