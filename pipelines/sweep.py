"""Histograms of scores, and from them how many rows a threshold would keep: no media, no second pass."""

from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SHARES = [round(0.05 * step, 2) for step in range(21)]
# Lower edges of the bins; values below the first count in the first.
EDGES: dict[str, list[float]] = {
    "contrast": [4.0 * step for step in range(26)],
    "sharpness": [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000],
    "text_density": _SHARES,
    "motion": [0, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64],
    "cuts": [0, 1, 2, 3, 4, 6, 8, 16],
    "frozen": _SHARES,
    "aesthetic": [0.5 * step for step in range(21)],
    "watermark": _SHARES,
    "nsfw": _SHARES,
    "similarity": [round(-0.2 + 0.05 * step, 2) for step in range(25)],
}
AT_MOST = ("text_density", "cuts", "frozen", "watermark", "nsfw")  # scores of which less is better
Histograms = dict[str, list[int]]


def histograms(rows: pa.Table) -> Histograms:
    """Rows by bin, of each score that `rows` have. Rows without the score are not counted."""
    counted = {}
    for score in EDGES:
        if score in rows.column_names and len(values := pc.drop_null(rows[score])):
            edges = [-np.inf, *EDGES[score][1:], np.inf]
            counted[score] = np.histogram(values.to_numpy(), edges)[0].tolist()
    return counted


def merge(parts: list[Histograms]) -> Histograms:
    """The sum of several units'."""
    total: Histograms = {}
    for part in parts:
        for score, counts in part.items():
            before = total.get(score, [0] * len(counts))
            total[score] = [a + b for a, b in zip(before, counts, strict=True)]
    return dict(sorted(total.items()))


def kept_by_cut(score: str, counts: list[int]) -> list[tuple[float, int]]:
    """[(cut-off, rows kept)]: at least the cut-off, or, where less is better, below it."""
    if score in AT_MOST:
        return list(zip([*EDGES[score][1:], float("inf")], accumulate(counts), strict=True))
    return list(zip(EDGES[score], list(accumulate(reversed(counts)))[::-1], strict=True))
