import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from showo2.shards import ShardReader, ShardSchema, TextRow, write_latents, write_text
from showo2.shards.writer import write_teacher


def sheet(count: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    uids = [f"{i:032x}" for i in range(count)]
    latents = np.arange(count * 16 * 4, dtype=np.float16).reshape(count, 16, 1, 2, 2) % 2000
    return uids, latents, np.zeros((count, 2), np.int32), np.zeros((count, 4), np.int32)


def small(mean: float = 0.0) -> ShardSchema:
    return ShardSchema("s", "pair", (1, 2, 2), "v", (mean,) * 16, (1.0,) * 16, "center")


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 200), texts=st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_any_number_of_rows_and_any_text_round_trips(tmp_path_factory, count, texts):
    folder = tmp_path_factory.mktemp("shard")
    uids, latents, sizes, crops = sheet(count)
    rows = [TextRow(uid, texts[i % len(texts)]) for i, uid in enumerate(uids)]
    with open(folder / "a", "wb") as file:
        write_latents(file, small(), uids, latents, sizes, crops)
    with open(folder / "t", "wb") as file:
        write_text(file, small(), rows)
    reader = ShardReader(str(folder / "a"), str(folder / "t"))
    assert len(reader) == count
    for i in range(count):
        row = reader.read(i)
        assert (row.uid, row.text) == (uids[i], rows[i]) and np.array_equal(row.latents.numpy(), latents[i])


def test_equal_rows_give_equal_bytes():
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        write_latents(file, small(), *sheet(130))
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize("change, message", [
    (lambda a: (a[0], a[1].astype(np.float32), *a[2:]), "latents are float32"),
    (lambda a: (a[0], a[1][:2], *a[2:]), r"need float16 \(3, 16, 1, 2, 2\)"),
    (lambda a: (a[0], a[1], a[2][:1], a[3]), "do not fit 3 rows"),
    (lambda a: (a[0], np.where(a[1] == 64, np.float16("nan"), a[1]), *a[2:]), "0001'.* are not finite"),
])
def test_misfits_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        write_latents(io.BytesIO(), small(), *change(sheet(3)))


def test_missing_teacher_picture_is_refused():
    with pytest.raises(ValueError, match="1 pictures for 2 rows"):
        write_teacher(io.BytesIO(), small(), ["0" * 32, "1" * 32], [b"x"])
