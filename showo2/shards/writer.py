"""Writing the files of a shard: equal rows give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from showo2.shards.format import BATCH_ROWS, UID_BYTES, ShardSchema, TextRow


def write_latents(file: BinaryIO, schema: ShardSchema, uids: Sequence[str], latents: NDArray[np.float16],
                  sizes: NDArray[np.int32], crops: NDArray[np.int32],
                  times: NDArray[np.float32] | None = None) -> None:
    """Write the latents file of a shard.

    uids: n times 32 hex digits. latents: (n, C, T, h, w) float16, finite. sizes: (n, 2) width and height of
    the originals. crops: (n, 4) left, top, right, bottom in the original. times: (n, frames) seconds, of clips only.
    Raises ValueError where these disagree.
    """
    count = len(uids)
    if latents.dtype != np.float16 or latents.shape != (count, *schema.shape):
        raise ValueError(f"latents are {latents.dtype} {latents.shape}; "
                         f"the schema's {count} rows need float16 {(count, *schema.shape)}")
    if sizes.shape != (count, 2) or crops.shape != (count, 4):
        raise ValueError(f"sizes {sizes.shape} and crops {crops.shape} do not fit {count} rows")
    if (times is not None) != schema.timed or (times is not None and times.shape != (count, schema.frames)):
        raise ValueError(f"times are {None if times is None else times.shape}; a shard of kind {schema.kind} in bucket "
                         f"{schema.bucket} needs {(count, schema.frames) if schema.timed else None}")
    broken = [uid for uid, row in zip(uids, latents, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise ValueError(f"latents of {broken[:3]} are not finite")
    arrow = schema.latents_schema()
    flat = np.ascontiguousarray(latents).reshape(count, schema.row_bytes // 2).view(np.uint8)
    sums = np.fromiter((xxhash.xxh3_64_intdigest(row.data) for row in flat), np.uint64, count)
    sizes, crops = sizes.astype(np.int32), crops.astype(np.int32)
    with pa.ipc.new_file(file, arrow) as out:
        for rows in _batches(count):
            columns = [_uids(uids[rows]), pa.array(sizes[rows, 0]), pa.array(sizes[rows, 1]), _lists(crops[rows]),
                       pa.array(sums[rows])]
            if times is not None:
                columns.append(_lists(times[rows].astype(np.float32)))
            columns.append(_fixed(flat[rows].tobytes(), len(flat[rows]), schema.row_bytes))
            out.write_batch(pa.record_batch(columns, schema=arrow))


def write_text(file: BinaryIO, schema: ShardSchema, rows: Sequence[TextRow]) -> None:
    """Write the text sidecar; `rows` in the order of the latents file."""
    arrow = schema.text_schema()
    with pa.ipc.new_file(file, arrow) as out:
        for part in _batches(len(rows)):
            some = rows[part]
            columns = [_uids([row.uid for row in some])]
            columns += [pa.array([getattr(row, name) for row in some], pa.string())
                        for name in ("text", "messages", "captioner", "prompt_id")]
            columns.append(pa.array([row.checksum() for row in some], pa.uint64()))
            out.write_batch(pa.record_batch(columns, schema=arrow))


def write_teacher(file: BinaryIO, schema: ShardSchema, uids: Sequence[str], jpegs: Sequence[bytes]) -> None:
    """Write the teacher sidecar: one JPEG of the crop a row, in the order of the latents file."""
    if len(uids) != len(jpegs):
        raise ValueError(f"{len(jpegs)} pictures for {len(uids)} rows")
    arrow = schema.teacher_schema()
    with pa.ipc.new_file(file, arrow) as out:
        for part in _batches(len(uids)):
            sums = [xxhash.xxh3_64_intdigest(jpeg) for jpeg in jpegs[part]]
            columns = [_uids(uids[part]), pa.array(jpegs[part], pa.binary()), pa.array(sums, pa.uint64())]
            out.write_batch(pa.record_batch(columns, schema=arrow))


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH_ROWS) for start in range(0, count, BATCH_ROWS))


def _uids(uids: Sequence[str]) -> pa.Array:
    return _fixed(b"".join(bytes.fromhex(uid) for uid in uids), len(uids), UID_BYTES)


def _lists(values: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _fixed(data: bytes, count: int, width: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(data)])
