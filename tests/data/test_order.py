"""The keyed permutation: a bijection for any n, the same on every machine, close to a full shuffle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from showo2.data.order import Windows, inverse, make_key, permute

keys = st.integers(0, 2**64 - 1)


@given(st.integers(1, 3000), keys)
def test_is_a_bijection(n, key):
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


@given(st.integers(1, 2**62), keys, st.data())
def test_inverse_undoes_it_for_any_n(n, key, data):
    position = data.draw(st.integers(0, n - 1))
    place = permute(position, n, key)
    assert 0 <= place < n
    assert inverse(place, n, key) == position


def test_scalar_and_vector_agree_at_a_trillion():
    n = 10**12
    positions = np.array([0, 1, 2, n // 2, n - 1])
    assert [int(permute(p, n, 7)) for p in positions] == permute(positions, n, 7).tolist()


def test_is_fixed_forever():
    """A changed permutation would change the data of every run that is resumed."""
    assert permute(np.arange(8), 8, make_key(0, "pairs", 0)).tolist() == [4, 3, 1, 2, 7, 0, 5, 6]
    assert permute(np.arange(3), 10**12, make_key(0, "pairs", 0)).tolist() == [247373087435, 588047498435, 968859409647]


def test_looks_like_a_full_shuffle():
    n = 20_000
    order = permute(np.arange(n), n, 3)
    rank_correlation = np.corrcoef(np.arange(n), order)[0, 1]
    steps = np.abs(np.diff(order))
    assert abs(rank_correlation) < 0.03
    assert abs(steps.mean() / (n / 3) - 1) < 0.03  # A random permutation's mean distance of neighbours is n/3.
    assert (permute(np.arange(n), n, 4) == order).sum() < 10


def test_positions_outside_and_empty_orders_are_errors():
    with pytest.raises(IndexError, match="0..9"):
        permute(10, 10, 0)
    with pytest.raises(ValueError, match="cannot order 0"):
        permute(0, 0, 0)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(deadline=None)
@given(sizes, keys, st.integers(1, 8))
def test_windows_are_a_bijection_that_stays_in_its_shards(shards, key, window):
    order, total = Windows(shards, key, window), sum(shards)
    rows = order.places(np.arange(total))
    assert sorted(rows) == list(range(total))
    owner = np.repeat(np.arange(len(shards)), shards)[rows]
    windows = order.windows(np.arange(total))
    for w in range(windows[-1] + 1):
        assert set(owner[windows == w]) == set(order.members(w))
    assert sorted(i for w in range(windows[-1] + 1) for i in order.members(w)) == list(range(len(shards)))
    assert order.members(windows[-1] + 1) == []


@settings(deadline=None)
@given(sizes, keys, st.integers(1, 8), st.data())
def test_any_part_of_a_windowed_order_can_be_asked_for_alone(shards, key, window, data):
    whole = Windows(shards, key, window).places(np.arange(sum(shards)))
    some = np.array(data.draw(st.lists(st.integers(0, sum(shards) - 1), max_size=20)), np.int64)
    assert Windows(shards, key, window).places(some).tolist() == whole[some].tolist()


def test_windowed_order_at_the_papers_size_takes_no_table():
    rows = 66_000_000
    order = Windows(np.full(rows // 11_000, 11_000), 1)
    middle = order.places(np.arange(rows // 2, rows // 2 + 512))
    assert len(set((middle // 11_000).tolist())) > 60  # a batch mixes all 64 shards of its window
    assert len(set(middle.tolist())) == 512


def test_windowed_order_is_fixed_forever():
    assert Windows([3, 2, 4], make_key(0, "pairs", 0), 2).places(np.arange(9)).tolist() == [0, 6, 1, 7, 2, 5, 8, 3, 4]
