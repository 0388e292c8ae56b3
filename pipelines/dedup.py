"""Exact duplicates in two passes: all fingerprints first, then groups, of which the best stays.

Best is more pixels, then the smaller uid; nothing depends on the order of arrival, so retries and the number
of workers cannot change the result.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

ROWS_A_BUCKET = 16_000_000  # about 3 GB of memory while a bucket is grouped


def repeated(rows: pa.Table) -> pa.Table:
    """Of rows (uid, unit, row) those whose uid another row has before them, by number of unit and row."""
    ordered = rows.sort_by([("uid", "ascending"), ("unit", "ascending"), ("row", "ascending")])
    return ordered.filter(_as_before(ordered["uid"]))


def duplicates(rows: pa.Table) -> pa.Table:
    """Of candidates (same, pixels, uid, ...) all but the best of each group of equal `same`.

    The result has the same columns and `duplicate_of`, the uid of the one that stays.
    """
    order = [("same", "ascending"), ("pixels", "descending"), ("uid", "ascending")]
    ordered = rows.sort_by(order).combine_chunks()
    later = _as_before(ordered["same"])
    group = pc.subtract(pc.cumulative_sum(pc.cast(pc.invert(later), pa.int64())), 1)
    best = ordered["uid"].filter(pc.invert(later)).take(group)
    return ordered.append_column("duplicate_of", best).filter(later)


def _as_before(column: pa.ChunkedArray) -> pa.Array:
    """For each value of a sorted column: is it equal to the one before it?"""
    values = column.combine_chunks()
    if len(values) == 0:
        return pa.array([], pa.bool_())
    same = pc.equal(values[1:], values[:-1])
    return pa.concat_arrays([pa.array([False]), same])


def in_buckets(count: int, read: Callable[[str, str], pa.Table]) -> Iterator[pa.Table]:
    """Call `read(low, high)` for ranges of hex keys that hold about ROWS_A_BUCKET of `count` rows each.

    Rows of one group share their key, so they meet in one bucket; memory is bounded by a bucket.
    """
    buckets = max(1, -(-count // ROWS_A_BUCKET))
    edges = [f"{round(i * 0x10000 / buckets):04x}" for i in range(buckets)] + ["g"]
    for low, high in pairwise(edges):
        yield read(low, high)
