"""Two-pass duplicates: the answer does not depend on the order of rows, nor on the number of buckets."""

import random
from itertools import chain

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import dedup

ROW = st.tuples(st.sampled_from("abcdef"), st.integers(1, 3))


def table(rows: list[tuple[str, int]]) -> pa.Table:
    """Candidates with uids of their own."""
    uids = [f"{number:04x}" for number in range(len(rows))]
    same, pixels = [row[0] * 4 for row in rows], [row[1] for row in rows]
    return pa.table({"uid": uids, "same": same, "pixels": pa.array(pixels, pa.int64())})


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=40), st.randoms())
def test_one_of_each_group_stays_and_it_is_the_best(rows, rng: random.Random):
    whole = table(rows)
    order = list(range(len(rows)))
    rng.shuffle(order)
    lost = {row["uid"]: row["duplicate_of"] for row in dedup.duplicates(whole.take(order)).to_pylist()}
    groups: dict[str, list[tuple[int, str]]] = {}
    for row in whole.to_pylist():
        groups.setdefault(row["same"], []).append((-row["pixels"], row["uid"]))
    for members in groups.values():
        best = min(members)[1]
        assert {uid: lost.get(uid) for _, uid in members} == {
            uid: None if uid == best else best for _, uid in members
        }


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.randoms())
def test_the_first_of_a_repeated_uid_stays(uids, rng: random.Random):
    units = pa.array([number % 3 for number in range(len(uids))], pa.int32())
    rows = pa.table(
        {"uid": pa.array(uids, pa.string()), "unit": units, "row": pa.array(range(len(uids)), pa.int32())}
    )
    order = list(range(len(uids)))
    rng.shuffle(order)
    lost = {(r["unit"], r["row"]) for r in dedup.repeated(rows.take(order)).to_pylist()}
    for uid in set(uids):
        places = sorted((number % 3, number) for number, other in enumerate(uids) if other == uid)
        assert places[0] not in lost and set(places[1:]) <= lost


def test_buckets_part_all_keys(monkeypatch):
    monkeypatch.setattr(dedup, "ROWS_A_BUCKET", 10)
    keys = [f"{number:04x}" + "ff" for number in range(0, 0x10000, 97)]
    parts = list(dedup.in_buckets(65, lambda low, high: [key for key in keys if low <= key < high]))
    assert len(parts) == 7 and list(chain(*parts)) == keys
