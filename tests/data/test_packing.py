"""Dealing and packing lose nothing, balance, and are the same everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showo2.data.packing import cost, deal, fill_rows

lengths = st.lists(st.integers(1, 128), max_size=80)


@given(lengths, st.integers(1, 9))
def test_every_document_goes_to_one_group(sizes, groups):
    dealt = deal([cost(n, 128) for n in sizes], groups)
    assert len(dealt) == groups
    assert sorted(i for group in dealt for i in group) == list(range(len(sizes)))


@given(lengths, st.integers(1, 9))
def test_groups_differ_by_one_document_at_most(sizes, groups):
    costs = [cost(n, 128) for n in sizes]
    loads = [sum(costs[i] for i in group) for group in deal(costs, groups)]
    assert max(loads) - min(loads) <= max(costs, default=0) + 1e-6


@given(lengths)
def test_rows_hold_every_document_and_no_more_than_fits(sizes):
    rows = fill_rows(sizes, 128)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= 128 for row in rows)
    # First fit leaves at most one row half empty.
    assert sum(sum(sizes[i] for i in row) <= 64 for row in rows) <= 1


def test_too_long_a_document_is_an_error():
    with pytest.raises(ValueError, match="129 tokens does not fit a context of 128"):
        fill_rows([129], 128)
