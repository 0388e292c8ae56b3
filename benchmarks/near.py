"""The lookup of near copies: against faiss, which compares all with all, and one piece of it at 66M pictures.

Hashes are random, and every tenth picture is a copy of a crop of another, off by up to 8 bits: pictures' own hashes are
less even, so a real lookup takes longer. One thread each.

    python -m benchmarks.near --json FILE
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import tyro

from benchmarks._report import Aim, Report, Row
from pipelines import near

VARIANTS = near.WHOLE + 1
PIECES = len(list(combinations(range(8), 3)))


@dataclass(frozen=True)
class Options:
    """json: where the report goes. pictures: looked up among each other. real: pictures of one piece at real size (9 GB
    of memory at 66M; 0 leaves it out)."""

    json: str = "build/benchmarks/near.json"
    pictures: int = 200_000
    real: int = 66_000_000


def planted(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, V) hashes, of which the last of a row is the whole picture's; (P, 2) copies and originals; (P,) bits between them."""
    numbers = np.random.default_rng(0)
    variants = numbers.integers(0, 2**64, (count, VARIANTS), np.uint64)
    copies, originals = np.split(numbers.permutation(count)[: count // 5], 2)
    bits = numbers.integers(0, near.PICTURE_BITS + 1, len(copies))
    flips = numbers.random((len(copies), 64)).argsort(1) < bits[:, None]
    flipped = np.packbits(flips, 1).view(np.uint64).ravel()
    variants[copies, -1] = variants[originals, numbers.integers(0, VARIANTS, len(copies))] ^ flipped
    return variants, np.stack([copies, originals], 1), bits


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def ours(variants: np.ndarray) -> np.ndarray:
    """(P, 2) pairs, as `jobs.curate` finds them."""
    rows = np.arange(len(variants))
    return near.candidates(variants[:, -1].copy(), variants, near.PICTURE_BITS, rows, rows, 0, "ours")[:, :2]


def faiss_pairs(variants: np.ndarray) -> np.ndarray:
    """(P, 2) pairs, by comparing every hash with every other."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(64)
    index.add(variants.reshape(-1, 1).view(np.uint8))
    ends, _, places = index.range_search(variants[:, -1:].copy().view(np.uint8), near.PICTURE_BITS + 1)
    pairs = np.stack([np.repeat(np.arange(len(variants)), np.diff(ends.astype(np.int64))), places // VARIANTS], 1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def found(pairs: np.ndarray, wanted: np.ndarray, count: int) -> np.ndarray:
    """Which of the planted pairs are among those found."""
    return np.isin(wanted @ [count, 1], pairs @ [count, 1])


def piece(count: int) -> tuple[float, int]:
    """CPU seconds of one piece of a lookup of so many pictures, and how many pieces there are."""
    numbers = np.random.default_rng(0)
    variants = numbers.integers(0, 2**64, (count, VARIANTS), np.uint64)
    splits = near.splits(variants.size)
    lookup = near.Lookup(variants[:, -1].copy(), variants, near.PICTURE_BITS, (np.arange(count),) * 2)
    seconds, _ = timed(lambda: lookup({"bytes": (0, 3, 6), "split": 0, "splits": splits}))
    return seconds, splits * PIECES


def run(options: Options) -> Report:
    """Both, and the piece."""
    variants, wanted, bits = planted(options.pictures)
    seconds, own = timed(lambda: ours(variants))
    theirs_seconds, theirs = timed(lambda: faiss_pairs(variants))
    hits = found(own, wanted, options.pictures)
    rows = [Row("pictures", options.pictures, f"with {VARIANTS} hashes each"),
            Row("ours", seconds, "s of CPU time"), Row("faiss, all with all", theirs_seconds, "s of CPU time"),
            *(Row(f"found of copies that differ in {bit} bits", hits[bits == bit].mean(), "")
              for bit in range(near.PICTURE_BITS + 1)),
            Row("found by ours alone", float((~found(theirs, own, options.pictures)).sum()), "pairs")]  # fmt: skip
    aims = [Aim("faiss / ours, CPU time", theirs_seconds / seconds, ">=", 10.0),
            Aim("copies that faiss finds", found(theirs, wanted, options.pictures).mean(), "==", 1.0)]  # fmt: skip
    if options.real:
        one, pieces = piece(options.real)
        rows += [Row("pictures at real size", options.real, ""), Row("one piece", one, "s of CPU time"),
                 Row("pieces", pieces, ""), Row("all pieces", one * pieces / 3600, "core hours")]  # fmt: skip
    return Report("near", rows, aims)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
