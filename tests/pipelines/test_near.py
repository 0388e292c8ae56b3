"""Near duplicates: the banded lookup against looking at every pair, and who stays."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import near
from pipelines.measures import plain_text, text_hash


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_all_pairs_within_three_bits_are_found(seed, count):
    numbers = np.random.default_rng(seed)
    hashes = numbers.integers(0, 2**64, count, np.uint64)
    bits = np.uint64(1) << numbers.integers(0, 64, (count, 3)).astype(np.uint64)
    flips = np.bitwise_or.reduce(bits, axis=1)
    variants = np.stack([hashes, hashes ^ flips[::-1]], 1)
    found = {(i, j) for i, j, _ in near.candidates(hashes, variants, 3).tolist()}
    distance = np.bitwise_count(hashes[:, None, None] ^ variants[None]).min(2)
    assert found == {(i, j) for i, j in np.argwhere(distance <= 3).tolist() if i != j}


def test_of_several_variants_the_closest_is_named():
    one = np.array([0b0, 0b1], np.uint64)
    variants = np.array([[0b111, 0b0], [0b111, 0b1]], np.uint64)
    assert near.candidates(one, variants, 3).tolist() == [[0, 1, 1], [1, 0, 1]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1])), st.randoms())
def test_who_stays_is_near_no_other_who_stays_and_order_is_nothing(edges, rng: random.Random):
    rank = np.array(rng.sample(range(10), 10))
    pairs = np.array([(a, b, 0) for a, b in edges], np.int64).reshape(-1, 3)
    losers = near.settle(pairs, rank)
    both = {(a, b) for a, b in edges} | {(b, a) for a, b in edges}
    for loser, kept in losers.items():
        assert (loser, kept) in both and kept not in losers and rank[kept] < rank[loser]
    assert not [pair for pair in both if not set(pair) & losers.keys()]
    assert losers == near.settle(pairs[rng.sample(range(len(pairs)), len(pairs))], rank)


def test_a_chain_of_likeness_swallows_no_stranger():
    pairs = np.array([(0, 1, 0), (1, 2, 0), (2, 3, 0)])
    assert near.settle(pairs, np.arange(4)) == {1: 0, 3: 2}


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
