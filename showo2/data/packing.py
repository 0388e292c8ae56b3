"""Dealing documents to ranks, and packing them into rows of a fixed length."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def cost(tokens: int, width: int) -> float:
    """Work of a document in tokens: per layer, 24*width^2 FLOPs of matrices and 4*tokens*width of attention a token."""
    return tokens * (1 + tokens / (6 * width))


def deal(costs: Sequence[float], groups: int) -> list[list[int]]:
    """Indices of `costs` in `groups` lists of nearly equal total cost, each in ascending order.

    Longest first, each to the lightest group so far; ties go to the group with fewer documents, then to the first.
    """
    dealt: list[list[int]] = [[] for _ in range(groups)]
    heap = [(0.0, 0, g) for g in range(groups)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, count, group = heap[0]
        dealt[group].append(i)
        heapq.heapreplace(heap, (load + costs[i], count + 1, group))
    return [sorted(group) for group in dealt]


def fill_rows(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Indices of `lengths` in rows of at most `context` tokens each, few rows: first fit, longest first.

    Raises ValueError for a document longer than a row.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i] > context:
            raise ValueError(f"a document of {lengths[i]} tokens does not fit a context of {context}")
        row = next((r for r, space in enumerate(free) if space >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(context)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows
