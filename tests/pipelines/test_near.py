"""Near duplicates: the lookup against looking at every pair, and who stays."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import near
from pipelines.measures import plain_text, text_hash


def look_up(hashes, variants, bits):
    rows = np.arange(len(hashes))
    return near.candidates(hashes, variants, bits, rows, rows, 0, "rows").tolist()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(2, 60), st.sampled_from([2**26, 40]))
def test_all_pairs_within_five_bits_are_found_however_the_lookup_is_cut(seed, count, at_once):
    numbers = np.random.default_rng(seed)
    hashes = numbers.integers(0, 2**64, count, np.uint64)
    bits = np.uint64(1) << numbers.integers(0, 64, (count, 5)).astype(np.uint64)
    flips = np.bitwise_or.reduce(bits, axis=1)
    variants = np.stack([hashes, hashes ^ flips[::-1]], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_HASHES_AT_ONCE", at_once)
        found = [(i, j) for i, j, _ in look_up(hashes, variants, 5)]
    distance = np.bitwise_count(hashes[:, None, None] ^ variants[None]).min(2)
    assert found == [(i, j) for i, j in np.argwhere(distance <= 5).tolist() if i != j]


def test_of_several_variants_the_closest_is_named():
    one = np.array([0b0, 0b1], np.uint64)
    variants = np.array([[0b111, 0b0], [0b111, 0b1]], np.uint64)
    assert look_up(one, variants, 3) == [[0, 1, 1], [1, 0, 1]]


def test_a_lookup_on_actors_finds_what_one_in_this_process_finds(ray_session, monkeypatch):
    numbers = np.random.default_rng(0)
    hashes = numbers.integers(0, 2**12, 3000).astype(np.uint64)
    queries, held = np.arange(1000), np.arange(500, 3000)
    here = near.candidates(hashes, hashes[:, None], 2, queries, held, 0, "rows")
    assert set(here[:, 0]) <= set(queries) and set(here[:, 1]) <= set(held) and len(here) > 10_000
    monkeypatch.setattr(near, "_HASHES_HERE", 10)
    there = near.candidates(hashes, hashes[:, None], 2, queries, held, 2, "rows")
    assert np.array_equal(here, there)


def test_rows_of_one_hash_follow_the_best_of_them_and_go_where_it_goes():
    hashes = np.array([7, 5, 7, 7, 9], np.uint64)
    rank = np.array([2, 0, 1, 3, 4])
    pairs = near.followers(hashes, rank, np.array([0, 1, 2, 3]))
    assert sorted(pairs.tolist()) == [[0, 2, near.WHOLE], [3, 2, near.WHOLE]]
    led = {row: leader for row, leader, _ in pairs.tolist()}
    assert near.settle(np.array([(2, 1, 0)]), rank, led) == {2: 1, 0: 1, 3: 1}
    assert near.settle(np.zeros((0, 3), np.int64), rank, led) == {0: 2, 3: 2}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1])), st.randoms())
def test_who_stays_is_near_no_other_who_stays_and_order_is_nothing(edges, rng: random.Random):
    rank = np.array(rng.sample(range(10), 10))
    pairs = np.array([(a, b, 0) for a, b in edges], np.int64).reshape(-1, 3)
    losers = near.settle(pairs, rank, {})
    both = {(a, b) for a, b in edges} | {(b, a) for a, b in edges}
    for loser, kept in losers.items():
        assert (loser, kept) in both and kept not in losers and rank[kept] < rank[loser]
    assert not [pair for pair in both if not set(pair) & losers.keys()]
    assert losers == near.settle(pairs[rng.sample(range(len(pairs)), len(pairs))], rank, {})


def test_a_chain_of_likeness_swallows_no_stranger():
    pairs = np.array([(0, 1, 0), (1, 2, 0), (2, 3, 0)])
    assert near.settle(pairs, np.arange(4), {}) == {1: 0, 3: 2}


def test_captions_that_say_the_same_are_near_and_others_are_not():
    same = [
        "A red bridge over the river, 1932.",
        "a RED bridge over the river 1948",
        "a red  bridge over the river",
    ]
    assert len({text_hash(text) for text in same}) == 1
    other = text_hash("A blue bridge over the harbour, 1932.")
    assert int(other ^ text_hash(same[0])).bit_count() > near.CAPTION_BITS
    assert plain_text("caf&eacute;\n a\u0000b") == "café ab"
