"""The rows that a mixture entry draws from: every shard of its kind and bucket, in a keyed order that never ends."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from showo2.data.mixture import Entry
from showo2.data.order import make_key, permute
from showo2.shards import Manifest, Row, ShardReader, TextRow
from showo2.shards.format import Bucket
from showo2.shards.manifest import bucket_name

# Open files of an entry; a shard of 1 GiB holds thousands of rows, so a few hundred cover most of an epoch's reach.
_OPEN = 256


class Source:
    """All rows of an entry, numbered through its shards; sample numbers count on through the epochs."""

    def __init__(self, entry: Entry, manifests: Sequence[Manifest], bucket: Bucket, seed: int):
        self.entry, self.seed = entry, seed
        self._shards = [(m, s) for m in manifests for s in m.select(bucket, entry.kind, entry.sources) if s.rows]
        self._starts = np.cumsum([0] + [shard.rows for _, shard in self._shards])
        self.rows = int(self._starts[-1])
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = threading.Lock()
        if not self.rows:
            raise ValueError(_nothing(entry, manifests, bucket))
        if entry.task == "distill" and any(shard.teacher_path is None for _, shard in self._shards):
            raise ValueError(f"mixture entry {entry.name} needs the teacher's pictures: "
                             "run jobs.encode with --teacher-size")

    def places(self, numbers: ArrayLike) -> NDArray[np.int64]:
        """The rows (0 <= row < rows) of samples by number: each epoch is a permutation of its own."""
        epochs, positions = np.divmod(np.asarray(numbers, np.int64), self.rows)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = permute(positions[here], self.rows, make_key(self.seed, self.entry.name, epoch))
        return rows

    def read(self, place: int) -> Row:
        """A row, with the teacher's picture for distillation. Raises DamagedRow or ShardError."""
        reader, row = self._locate(place)
        return reader.read(row, teacher=self.entry.task == "distill")

    def text(self, place: int) -> TextRow:
        """Only a row's text. Raises DamagedRow or ShardError."""
        reader, row = self._locate(place)
        return reader.text(row)

    def _locate(self, place: int) -> tuple[ShardReader, int]:
        index = int(np.searchsorted(self._starts, place, side="right")) - 1
        with self._lock:
            if index not in self._open:
                manifest, shard = self._shards[index]
                self._open[index] = manifest.open(shard)
            self._open.move_to_end(index)
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
            return self._open[index], place - int(self._starts[index])


def _nothing(entry: Entry, manifests: Sequence[Manifest], bucket: Bucket) -> str:
    of = f" of {', '.join(entry.sources)}" if entry.sources else ""
    there = "; ".join(f"{manifest.name or manifest.root} has {manifest.totals()}" for manifest in manifests)
    return (f"mixture entry {entry.name} needs rows of kind {entry.kind}{of} in bucket {bucket_name(bucket)}, "
            f"and there are none: {there}")
