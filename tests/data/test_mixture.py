"""Mixtures keep their ratio in every window, and the cursor resumes them anywhere."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from showo2.data.mixture import Cursor, Entry, Interleave

weights = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 40), min_size=1).filter(lambda w: any(w.values()))


@given(weights, st.integers(0, 300), st.integers(1, 200))
def test_ratio_holds_in_every_window(ratio, start, size):
    stream = Interleave(ratio)
    entry, _ = stream.locate(np.arange(start, start + size))
    for e, name in enumerate(stream.names):
        expected = size * ratio[name] / sum(ratio.values())
        assert abs((entry == e).sum() - expected) < 2 * len(stream.names)


@given(weights, st.integers(0, 500))
def test_each_entry_counts_up_without_a_gap(ratio, count):
    stream = Interleave(ratio)
    entry, number = stream.locate(np.arange(count))
    for e, name in enumerate(stream.names):
        assert number[entry == e].tolist() == list(range(stream.consumed(count)[name]))


@given(weights, st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_cutting_the_stream_changes_nothing(ratio, cuts):
    whole, _ = Cursor.load(ratio, None).take(sum(cuts))
    parts, state = [], None
    for cut in cuts:
        taken, cursor = Cursor.load(ratio, state).take(cut)
        parts += taken
        state = json.loads(json.dumps(cursor.state_dict()))
    assert parts == whole


def test_new_weights_go_on_where_each_entry_stood():
    _, cursor = Cursor.load({"a": 3, "b": 1}, None).take(8)
    samples, after = Cursor.load({"a": 1, "b": 1, "c": 2}, cursor.state_dict()).take(4)
    assert sorted(samples) == [("a", 6), ("b", 2), ("c", 0), ("c", 1)]
    assert after.consumed == {"a": 7, "b": 3, "c": 2}


def test_state_stays_under_a_kilobyte():
    ratio = {f"a fairly long name of an entry {i}": 10**4 for i in range(6)}
    _, cursor = Cursor.load(ratio, {"weights": {}, "consumed": dict.fromkeys(ratio, 10**12), "base": {}}).take(512)
    assert len(json.dumps(cursor.state_dict())) < 1024


@pytest.mark.parametrize("ratio", [{}, {"a": 0}, {"a": -1, "b": 2}])
def test_useless_weights_are_errors(ratio):
    with pytest.raises(ValueError, match="mixture weights"):
        Interleave(ratio)


@pytest.mark.parametrize("bucket", [None, (1, 8, 8)])
def test_only_clips_can_be_animated(bucket):
    with pytest.raises(ValueError, match="entry 'moving': only clips can be animated"):
        Entry("moving", "animate", "pair", 4, bucket=bucket)
    Entry("moving", "animate", "pair", 4, bucket=(5, 8, 8))
