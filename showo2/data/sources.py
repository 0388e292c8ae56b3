"""The rows that a mixture entry draws from: every shard of its kind and bucket, in a keyed order that never ends."""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from showo2.data.mixture import Entry
from showo2.data.order import WINDOW, Windows, make_key
from showo2.shards import DamagedRow, Manifest, Row, ShardReader, TextRow
from showo2.shards.format import Bucket
from showo2.shards.manifest import bucket_name
from showo2.shards.remote import Prefetch
from showo2.vae import CHANNELS

# The fewest rows that are worth a thread: the interpreter is free while bytes are copied and hashed.
_SLICE = 16
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
        located = [self._locate(place) for place in places]
        latents = self._latents(located)
        rows: list[Row | DamagedRow] = []
        for (reader, i), made in zip(located, latents, strict=True):
            try:
                rows.append(made if isinstance(made, DamagedRow)
                            else reader.row(i, made, teacher=self.entry.task == "distill"))
            except DamagedRow as damage:
                rows.append(damage)
        return rows

    def latents(self, places: Sequence[int]) -> list[Tensor | DamagedRow]:
        """Only the rows' latents, (C, T, h, w) float16 each; a damaged one in its place. Raises ShardError.

        Rows of one shape lie one after the other in one block of memory.
        """
        return self._latents([self._locate(place) for place in places])

    def _latents(self, located: list[tuple[ShardReader, int]]) -> list[Tensor | DamagedRow]:
        shapes = {reader.shape for reader, _ in located}
        if len(shapes) != 1:
            return [row for one in located for row in self._latents([one])]
        # One block for all rows: the kernel gives large ones in few pages.
        size = located[0][0].row_bytes // 2
        block = self._blocks.take(len(located) * size)
        data = block.view(len(located), size).numpy()
        # Few large parts, one of them this thread's: to wake another takes as long as to read some rows.
        share = max(_SLICE, -(-len(located) // self.threads))
        parts = [(data[n:n + share].view(np.uint8), located[n:n + share]) for n in range(0, len(located), share)]
        if len(parts) > 1:
            self._pool = self._pool or ThreadPoolExecutor(self.threads - 1, "shards")
            others = self._pool.map(_fill, parts[1:])
            damaged = [_fill(parts[0]), *others]
        else:
            damaged = [_fill(part) for part in parts]
        rows = block.view(len(located), *shapes.pop()).unbind()
        lost = {n * share + i: damage for n, part in enumerate(damaged) for i, damage in part.items()}
        return [lost.get(n, row) for n, row in enumerate(rows)] if lost else list(rows)

    def text(self, place: int) -> TextRow:
        """Only a row's text. Raises DamagedRow or ShardError."""
        reader, row = self._locate(place)
        return reader.text(row)

    def shape(self, place: int) -> tuple[int, int, int, int]:
        """(C, T, h, w) of a row's latents, from the manifest."""
        return CHANNELS, *self._shards[bisect_right(self._starts, place) - 1][1].bucket

    def uid(self, place: int) -> str:
        """Only a row's uid. Raises ShardError."""
        reader, row = self._locate(place)
        return reader.uid(row)

    def _locate(self, place: int) -> tuple[ShardReader, int]:
        index = bisect_right(self._starts, place) - 1
        with self._lock:
            if index not in self._open:
                self._drop()
                manifest, shard = self._shards[index]
                self._open[index] = manifest.open(shard)
            self._open.move_to_end(index)
            return self._open[index], place - self._starts[index]

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
        """`size` float16 numbers; in a DataLoader's worker such as its consumer sees without a copy."""
        if get_worker_info() is not None:
            return torch.empty(0, dtype=torch.float16).set_(torch.UntypedStorage._new_shared(2 * size), 0, (size,), (1,))
        free = self._free.pop() if self._free else None
        memory = free if free is not None and free.size >= size else np.empty(size, np.float16)
        lent = memory[:size]
        weakref.finalize(lent, self._back, memory).atexit = False
        return torch.from_numpy(lent)

    def _back(self, memory: NDArray[np.float16]) -> None:
        if len(self._free) < _SPARE:
            self._free.append(memory)


def _fill(part: tuple[NDArray[np.uint8], list[tuple[ShardReader, int]]]) -> dict[int, DamagedRow]:
    """Read rows into (rows, bytes); those that are damaged, by their number."""
    data, located = part
    view, size = data.reshape(-1).data, data.shape[1]
    damaged = {}
    for n, (reader, i) in enumerate(located):
        try:
            reader.latents_into(i, view[n * size:(n + 1) * size])
        except DamagedRow as damage:
            damaged[n] = damage
    return damaged


def _nothing(entry: Entry, manifests: Sequence[Manifest], bucket: Bucket) -> str:
    of = f" of {', '.join(entry.sources)}" if entry.sources else ""
    there = "; ".join(f"{manifest.name or manifest.root} has {manifest.totals()}" for manifest in manifests)
    return (f"mixture entry {entry.name} needs rows of kind {entry.kind}{of} in bucket {bucket_name(bucket)}, "
            f"and there are none: {there}")
