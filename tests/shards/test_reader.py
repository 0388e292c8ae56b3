import multiprocessing
import os
import pickle
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from showo2.shards import DamagedRow, Manifest, ShardError, ShardReader
from tests.shards.conftest import ROWS


@pytest.fixture
def reader(dataset: Manifest) -> ShardReader:
    return dataset.open(dataset.shards[0])


def sent(thing: Any) -> Any:
    """What another process would get."""
    one, other = multiprocessing.Pipe()
    one.send(thing)
    return other.recv()


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def test_every_row_comes_back(reader, uids, latents):
    for i in np.random.default_rng(1).permutation(ROWS).tolist():
        row = reader.read(i, teacher=True)
        assert row.uid == uids[i] == reader.uid(i)
        assert np.array_equal(row.latents.numpy(), latents[i])
        assert (row.width, row.height, row.crop) == (i, 700, (1, 2, 3, 4))
        assert (row.text.text, row.text.captioner) == (f"caption {i} é", "c")
        assert row.text.conversation() == []
        assert row.teacher == b"jpeg%d" % i and row.source == "web" and row.kind == "pair"
    assert (len(reader), reader.bucket, reader.schema.row_bytes) == (ROWS, (1, 4, 6), 768)


def test_tensor_is_writable_and_owns_its_bytes(reader):
    first = reader.latents(3)
    first.zero_()
    assert reader.latents(3).abs().sum() > 0


@pytest.mark.parametrize("i", [-1, ROWS])
def test_row_outside(reader, i):
    with pytest.raises(IndexError, match=f"row {i} .*has {ROWS}"):
        reader.read(i)


def test_pickle_reopens(reader, uids):
    reader.read(0)
    assert sent(reader).read(70).uid == uids[70]
    assert len(pickle.dumps(reader)) < 1000


def test_threads_share_a_reader(reader, latents):
    wrong = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, ROWS, 300).tolist():
            if not np.array_equal(reader.read(i).latents.numpy(), latents[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_flipped_byte_in_latents_harms_one_row(reader, uids):
    start = int(reader._fixed.offsets[64])
    flip(reader.path, start + 5 * reader.schema.row_bytes + 7)
    with pytest.raises(DamagedRow, match=rf"row 69 \(uid {uids[69]}\) of .*a.arrow") as caught:
        reader.read(69)
    assert sent(caught.value).uid == uids[69]
    for i in (68, 70):
        reader.read(i)
    assert ShardReader(reader.path, reader.text_path, verify=False).read(69).uid == uids[69]


@pytest.mark.parametrize("name", ["text", "teacher"])
def test_flipped_byte_in_a_sidecar(reader, name):
    path = reader.text_path if name == "text" else reader.teacher_path
    with open(path, "rb") as file:
        content = file.read()
    flip(path, content.index(b"caption 20" if name == "text" else b"jpeg20"))
    with pytest.raises(DamagedRow, match=f"row 20 .*{name}.arrow"):
        reader.read(20, teacher=True)
    reader.read(21, teacher=True)


def test_foreign_sidecar_row_is_noticed(dataset, reader, schema, uids):
    from showo2.shards import TextRow, write_text
    with open(reader.text_path, "wb") as file:
        write_text(file, schema, [TextRow(uid, "x") for uid in reversed(uids)])
    with pytest.raises(DamagedRow, match="the text there is of uid"):
        reader.read(0)
    with open(reader.text_path, "wb") as file:
        write_text(file, schema, [TextRow(uid, "x") for uid in uids[:100]])
    with pytest.raises(ShardError, match="has 100 rows, but .* has 150"):
        dataset.open(dataset.shards[0]).read(0)


def test_truncated_missing_foreign_and_newer_files_are_named(reader, tmp_path, schema):
    with pytest.raises(ShardError, match="opened without its text file"):
        ShardReader(reader.path).text(0)
    os.truncate(reader.path, os.path.getsize(reader.path) // 2)
    with pytest.raises(ShardError, match=r"a.arrow is damaged .*run jobs.encode again"):
        ShardReader(reader.path).read(0)
    with pytest.raises(ShardError, match="none.arrow is missing"):
        ShardReader(str(tmp_path / "none.arrow")).rows  # noqa: B018
    foreign = str(tmp_path / "foreign.arrow")
    table = pa.table({"uid": [1]})
    with pa.ipc.new_file(foreign, table.schema) as out:
        out.write_table(table)
    with pytest.raises(ShardError, match="is no shard|but no shard"):
        ShardReader(foreign).rows  # noqa: B018
    newer = str(tmp_path / "newer.arrow")
    with pa.ipc.new_file(newer, table.schema.with_metadata({b"showo2": b'{"format": 9}'})) as out:
        out.write_table(table)
    with pytest.raises(ShardError, match="shard format 9, this version reads 1"):
        ShardReader(newer).rows  # noqa: B018
