"""The order of samples: a keyed permutation of 0..n-1 that is computed, never stored.

`Windows` makes it local to shards: the shards are permuted and taken `WINDOW` at a time, and the rows of those are
permuted among themselves. So an epoch goes through the files in turn and holds few of them open (or in the cache of a
remote store), and what it keeps in memory is of the number of shards.

An alternating Feistel network permutes the smallest power of two >= n; positions that fall outside 0..n-1 are walked
along their cycle until they come back in (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The cost
is the same for n = 10 and n = 10^12, and nothing of size n exists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

ROUNDS = 8
WINDOW = 64  # shards; 64 GiB at a GiB each
_MAX = 1 << 62


def permute(position: ArrayLike, n: int, key: int) -> NDArray[np.int64]:
    """Where each `position` (any shape, 0 <= position < n) goes under the permutation of 0..n-1 that `key` names."""
    return _walk(position, n, key, range(ROUNDS))


def inverse(place: ArrayLike, n: int, key: int) -> NDArray[np.int64]:
    """The position that `permute` sends to `place`."""
    return _walk(place, n, key, range(ROUNDS)[::-1])


def make_key(*parts: object) -> int:
    """64-bit key of anything printable, the same on every machine: make_key(seed, "entry", epoch)."""
    return xxhash.xxh3_64_intdigest(repr(parts).encode())


class Windows:
    """One epoch's order of the rows of shards of the given sizes, `window` shards at a time."""

    def __init__(self, sizes: ArrayLike, key: int, window: int = WINDOW):
        sizes = np.asarray(sizes, np.int64)
        self.key, self.window = key, window
        self.shards = permute(np.arange(len(sizes)), len(sizes), key)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])[:-1][self.shards]
        # Where each shard, and each window, begins in the order of `shards`.
        self._edges = np.concatenate([[0], np.cumsum(sizes[self.shards])])
        self._bounds = np.append(self._edges[:-1:window], self._edges[-1])

    def places(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows, counted through all shards as given, that stand at these positions of the epoch."""
        rows = np.empty_like(position)
        windows = self.windows(position)
        for w in np.unique(windows).tolist():
            first, stop = self._bounds[w:w + 2].tolist()
            here = windows == w
            # A row's place among the window's rows, then the shard that holds it.
            inside = first + permute(position[here] - first, stop - first, make_key(self.key, w))
            shard = np.searchsorted(self._edges, inside, side="right") - 1
            rows[here] = self._starts[shard] + inside - self._edges[shard]
        return rows

    def windows(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the window that each position lies in."""
        return np.searchsorted(self._bounds, position, side="right") - 1

    def members(self, window: int) -> list[int]:
        """Shards of a window, in the order in which they were given; none past the last window."""
        return self.shards[window * self.window:(window + 1) * self.window].tolist()


def _walk(position: ArrayLike, n: int, key: int, rounds: Sequence[int]) -> NDArray[np.int64]:
    if not 0 < n <= _MAX:
        raise ValueError(f"cannot order {n} samples: need 1 to 2^62")
    x = np.asarray(position, dtype=np.int64)
    if x.size and (x.min() < 0 or x.max() >= n):
        raise IndexError(f"position outside 0..{n - 1}")
    bits = max(2, (n - 1).bit_length())
    out = x.astype(np.uint64).ravel()
    walking = np.arange(out.size)
    while walking.size:
        out[walking] = moved = _feistel(out[walking], bits, key, rounds)
        walking = walking[moved >= n]
    return out.astype(np.int64).reshape(x.shape)


def _feistel(x: NDArray[np.uint64], bits: int, key: int, rounds: Sequence[int]) -> NDArray[np.uint64]:
    """One pass over `bits` bits: odd rounds change the low half by the high one, even rounds the other way."""
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = _mask(bits // 2), _mask(bits - bits // 2)
    low, high = x & low_mask, x >> low_bits
    for r in rounds:
        if r % 2:
            low = low ^ (_mix(high, key, r) & low_mask)
        else:
            high = high ^ (_mix(low, key, r) & high_mask)
    return (high << low_bits) | low


def _mix(x: NDArray[np.uint64], key: int, r: int) -> NDArray[np.uint64]:
    """splitmix64's finaliser, a full avalanche of 64 bits, keyed by round."""
    x = x + np.uint64((key + (r + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
