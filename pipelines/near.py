"""Near duplicates in two passes: candidates by a banded lookup of 64-bit hashes, then the best of each neighbourhood.

A copy that lost up to 5 % of a side has a pHash far from its original's, but close to that of one of the original's
nine crops (`measures.likeness`). So each picture is looked up among all pictures and all their crops, and a candidate
is confirmed by comparing small pictures with that crop applied. Nothing depends on the order of arrival.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipelines.measures import THUMB, crop_boxes

PICTURE_BITS = 8  # pHashes of copies differ in up to so many of 64 bits
CAPTION_BITS = 3
THUMB_RMS = 14.0  # of 255: 8 x 8 pictures of copies differ by up to so much
MIN_CONTRAST = 4.0  # of 255: below, a picture has no structure to compare
_BANDS = 4  # of 16 bits: hashes meet where one band is equal
_PAIRS_AT_ONCE = 1 << 22

WHOLE = len(crop_boxes(1, 1))  # "crop" number of the whole picture


def candidates(whole: np.ndarray, variants: np.ndarray, bits: int) -> np.ndarray:
    """(P, 3) int64 of (i, j, v), i != j, where `whole[i]` and `variants[j, v]` differ in at most `bits` bits.

    whole: (N,) uint64. variants: (N, V) uint64. Pairs that share none of four bands of 16 bits are not found. Of
    several v of one (i, j) the closest stands there, and of those the last.
    """
    count = variants.shape[1]
    found = [np.zeros((0, 4), np.int64)]
    for band in range(_BANDS):
        shift = np.uint64(16 * band)
        keys = ((variants.ravel() >> shift) & np.uint64(0xFFFF)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        wanted = ((whole >> shift) & np.uint64(0xFFFF)).astype(np.uint16)
        low, high = (np.searchsorted(keys, wanted, side, sorter=order) for side in ("left", "right"))
        for i, place in _expand(low, high):
            j, v = np.divmod(order[place], count)
            distance = np.bitwise_count(whole[i] ^ variants[j, v])
            near = (distance <= bits) & (i != j)
            found.append(np.stack([i[near], j[near], distance[near], -v[near]], 1).astype(np.int64))
    rows = np.unique(np.concatenate(found), axis=0)  # sorted by i, j, distance, -v
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(1)
    return np.stack([rows[first, 0], rows[first, 1], -rows[first, 3]], 1)


def _expand(low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (query, place) with low[query] <= place < high[query], some millions at a time."""
    sizes = high - low
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        done = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, "right")))
        part = sizes[start:stop]
        query = np.repeat(np.arange(start, stop), part)
        within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        yield query, low[query] + within
        start = stop


def confirm(pairs: np.ndarray, thumbs: np.ndarray) -> np.ndarray:
    """The candidates (P, 3) whose small pictures agree. thumbs: (N, 8, 8, 3) uint8, by the numbers in `pairs`."""
    agree = np.zeros(len(pairs), bool)
    cut = _crop_matrices()
    for start in range(0, len(pairs), _PAIRS_AT_ONCE // 64):
        i, j, v = pairs[start : start + _PAIRS_AT_ONCE // 64].T
        down, across = cut[v, 0], cut[v, 1]
        # The crop of j's small picture, resampled: rows by `down`, columns by `across`.
        cropped = np.einsum("prh,phwc,pqw->prqc", down, thumbs[j].astype(np.float32), across, optimize=True)
        error = ((cropped - thumbs[i]) ** 2).mean((1, 2, 3))
        agree[start : start + len(i)] = error <= THUMB_RMS**2
    return pairs[agree]


def _crop_matrices() -> np.ndarray:
    """(10, 2, 8, 8): for each crop, and for the whole picture, bilinear resampling of rows and of columns."""
    boxes = [*crop_boxes(THUMB, THUMB), (0.0, 0.0, float(THUMB), float(THUMB))]
    return np.array([[_resampling(b[1], b[3]), _resampling(b[0], b[2])] for b in boxes], np.float32)


def _resampling(start: float, stop: float) -> np.ndarray:
    """(8, 8): what resizing [start, stop) of 8 values to 8 does to each."""
    unit = Image.fromarray(np.eye(THUMB, dtype=np.float32))
    return np.asarray(unit.resize((THUMB, THUMB), Image.Resampling.BILINEAR, box=(0, start, THUMB, stop)))


def settle(pairs: np.ndarray, rank: np.ndarray) -> dict[int, int]:
    """{loser: the kept one that it is near to}. The lowest `rank` (N,) stays, then the next that is near none kept.

    So each loser is near to what stays in its place, and chains of likeness do not swallow strangers.
    """
    both = np.concatenate([pairs[:, :2], pairs[:, 1::-1]])
    near: dict[int, list[int]] = {}
    for one, other in both.tolist():
        near.setdefault(one, []).append(other)
    kept: set[int] = set()
    losers: dict[int, int] = {}
    for row in sorted(near, key=lambda row: rank[row]):
        better = [other for other in near[row] if other in kept]
        if better:
            losers[row] = min(better, key=lambda other: rank[other])
        else:
            kept.add(row)
    return losers
