"""The rows that a mixture entry draws from: every shard of its kind and bucket, in a keyed order that never ends."""

from __future__ import annotations

import math
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from showo2.data.mixture import Entry
from showo2.data.order import WINDOW, Windows, make_key
from showo2.shards import DamagedRow, Manifest, Row, ShardReader, TextRow
from showo2.shards.format import Bucket
from showo2.shards.manifest import bucket_name
from showo2.shards.remote import Prefetch
from showo2.vae import CHANNELS

# Rows that a thread takes at a time.
_SLICE = 8
# Blocks of memory that are kept for the next rows.
_SPARE = 4


class Source:
    """All rows of an entry, numbered through its shards; sample numbers count on through the epochs.

    Rows of remote shards come from copies in the cache (`shards.remote`): while a window of shards is read, a thread
    fetches the next one. `threads` read at the same time.
    """

    def __init__(self, entry: Entry, manifests: Sequence[Manifest], bucket: Bucket, seed: int, window: int = WINDOW,
                 threads: int = 2):
        self.entry, self.seed, self.window, self.threads = entry, seed, window, threads
        self._shards = [(m, s) for m in manifests for s in m.shards if s.rows and entry.wants(s, bucket)]
        self._sizes = [shard.rows for _, shard in self._shards]
        self._starts = np.cumsum([0, *self._sizes]).tolist()
        self.rows = self._starts[-1]
        if not self.rows:
            raise ValueError(_nothing(entry, manifests, entry.bucket or bucket))
        if entry.task == "distill" and any(shard.teacher_path is None for _, shard in self._shards):
            raise ValueError(f"mixture entry {entry.name} needs the teacher's pictures: "
                             "run jobs.encode with --teacher-size")
        self._begin()

    def _begin(self) -> None:
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = threading.Lock()
        self._order: tuple[int, Windows] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._blocks = _Blocks()
        self._fetch = Prefetch()
        self._fetched: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Open files and threads stay behind."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_open", "_lock", "_order", "_pool", "_blocks", "_fetch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin()

    def places(self, numbers: ArrayLike) -> NDArray[np.int64]:
        """The rows (0 <= row < rows) of samples by number: each epoch is a permutation of its own."""
        epochs, positions = np.divmod(np.asarray(numbers, np.int64), self.rows)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order = self._windows(epoch)
            rows[here] = order.places(positions[here])
            self._prefetch(epoch, order, int(order.windows(positions[here]).max()))
        return rows

    def _windows(self, epoch: int) -> Windows:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, Windows(self._sizes, make_key(self.seed, self.entry.name, epoch), self.window)
        return self._order[1]

    def _prefetch(self, epoch: int, order: Windows, window: int) -> None:
        """Bring this window's shards and the next one's into the cache, where they are remote."""
        if self._fetched != (epoch, window):
            self._fetched = epoch, window
            wanted = [self._shards[i] for w in (window, window + 1) for i in order.members(w)]
            self._fetch([path for m, s in wanted for path in m.paths(s, self.entry.task == "distill")])

    def read(self, places: Sequence[int]) -> list[Row | DamagedRow]:
        """Rows, with the teacher's picture for distillation; a damaged one in its place. Raises ShardError."""
        located = self._locate(places)
        block, damaged = self._read(located)
        latents = _rows(block, [reader.shape for reader, _ in located])
        return [damaged.get(n) or self._row(reader, i, latents[n]) for n, (reader, i) in enumerate(located)]

    def latents(self, places: Sequence[int]) -> tuple[list[str], Tensor, dict[int, DamagedRow]]:
        """Only the rows' uids and latents, (N, C, T, h, w) float16; which of them are damaged, by number in `places`.

        Raises ValueError where their shapes differ, as those of documents do; ShardError.
        """
        located = self._locate(places)
        shapes = {reader.shape for reader in {reader for reader, _ in located}}
        if len(shapes) != 1:
            raise ValueError(f"rows of the shapes {sorted(shapes)} do not stack; use `read`")
        block, damaged = self._read(located)
        return [reader.uid(i) for reader, i in located], block.view(len(located), *shapes.pop()), damaged

    def _read(self, located: list[tuple[ShardReader, int]]) -> tuple[Tensor, dict[int, DamagedRow]]:
        """All rows' latents, one after the other in one block of memory: the kernel gives large ones in few pages."""
        block = self._blocks.take(sum(reader.row_bytes for reader, _ in located) // 2)
        reading = _Reading(located, block.numpy().view(np.uint8).data)
        if self.threads > 1 and len(located) >= 2 * _SLICE:
            self._pool = self._pool or ThreadPoolExecutor(self.threads - 1, "shards")
            others = [self._pool.submit(reading.run) for _ in range(self.threads - 1)]
            reading.run()
            for other in others:
                other.result()
        else:
            reading.run()
        return block, reading.damaged

    def _row(self, reader: ShardReader, i: int, latents: Tensor) -> Row | DamagedRow:
        try:
            return reader.row(i, latents, teacher=self.entry.task == "distill")
        except DamagedRow as damage:
            return damage

    def text(self, place: int) -> TextRow:
        """Only a row's text. Raises DamagedRow or ShardError."""
        [(reader, row)] = self._locate([place])
        return reader.text(row)

    def shape(self, place: int) -> tuple[int, int, int, int]:
        """(C, T, h, w) of a row's latents, from the manifest."""
        return CHANNELS, *self._shards[bisect_right(self._starts, place) - 1][1].bucket

    def uid(self, place: int) -> str:
        """Only a row's uid. Raises ShardError."""
        [(reader, row)] = self._locate([place])
        return reader.uid(row)

    def _locate(self, places: Sequence[int]) -> list[tuple[ShardReader, int]]:
        starts, numbers = self._starts, [bisect_right(self._starts, place) - 1 for place in places]
        with self._lock:
            readers = {number: self._reader(number) for number in dict.fromkeys(numbers)}
        return [(readers[number], place - starts[number]) for number, place in zip(numbers, places, strict=True)]

    def _reader(self, number: int) -> ShardReader:
        if number not in self._open:
            self._drop()
            manifest, shard = self._shards[number]
            self._open[number] = manifest.open(shard)
        self._open.move_to_end(number)
        return self._open[number]

    def _drop(self) -> None:
        """Close what two windows do not need, and what the cache has given up, so that its space is free."""
        stale = [i for i, reader in self._open.items() if reader.evicted]
        for i in [*stale, *list(self._open)[:max(0, len(self._open) - 2 * self.window)]]:
            self._open.pop(i, None)


class _Blocks:
    """Memory for rows. What nobody holds any more is lent again: for fresh memory the kernel takes as long as the rows do."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.float16]] = []

    def take(self, size: int) -> Tensor:
        """`size` float16 numbers."""
        free = self._free.pop() if self._free else None
        memory = free if free is not None and free.size >= size else np.empty(size, np.float16)
        lent = memory[:size]
        weakref.finalize(lent, self._back, memory).atexit = False
        return torch.from_numpy(lent)

    def _back(self, memory: NDArray[np.float16]) -> None:
        if len(self._free) < _SPARE:
            self._free.append(memory)


class _Reading:
    """Rows' latents that all threads that `run` read into `out`, one after the other; those that are damaged, by number."""

    def __init__(self, located: list[tuple[ShardReader, int]], out: memoryview):
        self._located, self._out = located, out
        self._ends = list(accumulate((reader.row_bytes for reader, _ in located), initial=0))
        # Whoever is free takes a slice: a thread that wakes up late finds less to do, and nobody waits for it long.
        self._slices = iter(range(0, len(located), _SLICE))
        self.damaged: dict[int, DamagedRow] = {}

    def run(self) -> None:
        """Read until no slice is left. Raises ShardError."""
        out, ends = self._out, self._ends
        for start in self._slices:
            for n, (reader, i) in enumerate(self._located[start:start + _SLICE], start):
                try:
                    reader.latents_into(i, out[ends[n]:ends[n + 1]])
                except DamagedRow as damage:
                    self.damaged[n] = damage


def _rows(block: Tensor, shapes: list[tuple[int, int, int, int]]) -> list[Tensor]:
    """Views of the block, one after the other."""
    if len(set(shapes)) == 1:
        return list(block.view(len(shapes), *shapes[0]).unbind())
    parts = block.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _nothing(entry: Entry, manifests: Sequence[Manifest], bucket: Bucket) -> str:
    of = f" of {', '.join(entry.sources)}" if entry.sources else ""
    there = "; ".join(f"{manifest.name or manifest.root} has {manifest.totals()}" for manifest in manifests)
    return (f"mixture entry {entry.name} needs rows of kind {entry.kind}{of} in bucket {bucket_name(bucket)}, "
            f"and there are none: {there}")
