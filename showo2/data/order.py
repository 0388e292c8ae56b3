"""The order of samples: a keyed permutation of 0..n-1 that is computed, never stored.

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
