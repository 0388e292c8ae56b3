"""Near duplicates in two passes: candidates by a lookup of 64-bit hashes, then the best of each neighbourhood.

A copy that lost up to 5 % of a side has a pHash far from its original's, but close to that of one of the original's
nine crops (`measures.likeness`). So each picture is looked up among all pictures and all their crops, and a candidate
is confirmed by comparing small pictures with that crop applied. Nothing depends on the order of arrival.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from pipelines.actors import run_actors
from pipelines.measures import THUMB, crop_boxes
from pipelines.progress import StageProgress

PICTURE_BITS = 8  # pHashes of copies differ in up to so many of 64 bits
CAPTION_BITS = 3
THUMB_RMS = 14.0  # of 255: 8 x 8 pictures of copies differ by up to so much
MIN_CONTRAST = 4.0  # of 255: below, a picture has no structure to compare
_BYTES = 8  # of a hash, of which three must be equal
_HASHES_AT_ONCE = 1 << 26  # that one piece of a lookup sorts, 1.5 GB
_HASHES_HERE = 1 << 20  # up to so many are looked up in this process
_PAIRS_AT_ONCE = 1 << 22
_NONE = np.zeros((0, 4), np.int64)

WHOLE = len(crop_boxes(1, 1))  # "crop" number of the whole picture


def candidates(whole: np.ndarray, variants: np.ndarray, bits: int, queries: np.ndarray, among: np.ndarray,
               workers: int | None, stage: str) -> np.ndarray:  # fmt: skip
    """(P, 3) int64 of (i, j, v), i of `queries`, j of `among`, i != j: `whole[i]` and `variants[j, v]` differ in at most
    `bits` bits.

    whole: (N,) uint64. variants: (N, V) uint64. queries, among: row numbers, int64. Pairs are found where any three of eight
    bytes are equal: all that differ in up to 5 bits, nine of ten that differ in 6, half of those that differ in 8. Of
    several v of one (i, j) the closest stands there, and of those the last. `workers`: actors on Ray, as for
    `run_actors`; a small lookup is done in this process. `stage`: its name on the progress bar.
    """
    held = variants[among]
    parts = splits(held.size)
    pieces = [
        {"bytes": three, "split": part, "splits": parts, "path": f"bytes {three}, part {part + 1} of {parts}"}
        for three in combinations(range(_BYTES), 3)
        for part in range(parts)
    ]
    if held.size <= _HASHES_HERE:
        workers = 0
    arguments = {"wanted": whole[queries], "held": held, "bits": bits, "numbers": (queries, among)}
    with StageProgress(stage, len(pieces)) as progress:
        found = [piece["found"] for piece in run_actors(Lookup, arguments, pieces, workers, progress)]
    rows = np.unique(np.concatenate([_NONE, *found]), axis=0)  # sorted by i, j, distance, -v
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(1)
    return np.stack([rows[first, 0], rows[first, 1], -rows[first, 3]], 1)


def splits(hashes: int) -> int:
    """Into how many parts a lookup among so many hashes is cut, by the first of three bytes."""
    return min(256, max(1, -(-hashes // _HASHES_AT_ONCE)))


class Lookup:
    """The work of an actor: pairs whose hashes agree in three given bytes, one piece of the hashes after the other."""

    def __init__(
        self, wanted: np.ndarray, held: np.ndarray, bits: int, numbers: tuple[np.ndarray, np.ndarray]
    ) -> None:
        self.wanted, self.held, self.bits, self.numbers = wanted, held.ravel(), bits, numbers
        self.variants = held.shape[1]

    def __call__(self, piece: dict[str, Any]) -> dict[str, Any]:
        """`found`: (P, 4) int64 of (i, j, distance, -v), each pair in the piece of the first three bytes that agree."""
        three = piece["bytes"]
        sought, stored = (_sorted_keys(hashes, piece) for hashes in (self.wanted, self.held))
        low, high = (np.searchsorted(stored[0], sought[0], side) for side in ("left", "right"))
        earlier = [byte for byte in range(three[-1]) if byte not in three]
        found = [_NONE]
        for query, place in _expand(low, high):
            one, other = sought[1][query], stored[1][place]
            differ = self.wanted[one] ^ self.held[other]
            distance = np.bitwise_count(differ)
            close = np.flatnonzero(distance <= self.bits)  # few: all that follows is for these alone
            first = (differ[close].view(np.uint8).reshape(-1, _BYTES)[:, earlier] != 0).all(1)
            close = close[first]
            row, v = np.divmod(other[close], self.variants)
            i, j = self.numbers[0][one[close]], self.numbers[1][row]
            pairs = np.stack([i, j, distance[close].astype(np.int64), -v], 1)
            found.append(pairs[i != j])
        pairs = np.concatenate(found)
        return {"rows": len(pairs), "found": pairs}


def _sorted_keys(hashes: np.ndarray, piece: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Keys of three bytes, sorted, and the places of their hashes: of those whose first byte falls into the piece."""
    by_byte = hashes.view(np.uint8).reshape(-1, _BYTES)
    first, second, third = piece["bytes"]
    place = np.flatnonzero(by_byte[:, first] % piece["splits"] == piece["split"])
    keys = by_byte[place, first].astype(np.uint32) << 16
    keys |= by_byte[place, second].astype(np.uint32) << 8
    keys |= by_byte[place, third]
    order = np.argsort(keys)
    return keys[order], place[order]


def followers(hashes: np.ndarray, rank: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(P, 3) int64: of the rows `numbers` each that has the hash of another, that of them with the lowest `rank`, and
    `WHOLE`.

    Looked up like others, ten thousand copies of one page would make 10^8 pairs.
    """
    order = numbers[np.lexsort((rank[numbers], hashes[numbers]))]
    start = np.ones(len(order), bool)
    start[1:] = hashes[order[1:]] != hashes[order[:-1]]
    leader = order[np.flatnonzero(start)[np.cumsum(start) - 1]]
    return np.stack([order, leader, np.full(len(order), WHOLE)], 1)[~start]


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


def settle(pairs: np.ndarray, rank: np.ndarray, led: dict[int, int]) -> dict[int, int]:
    """{loser: the kept one that it is near to}. The lowest `rank` (N,) stays, then the next that is near none kept.

    So each loser is near to what stays in its place, and chains of likeness do not swallow strangers. `led`: {row:
    leader} of those in no pair, because they are the leader's equals; they lose to it, or with it.
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
    return losers | {row: losers.get(leader, leader) for row, leader in led.items()}
