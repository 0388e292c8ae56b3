import dataclasses
import os

import pytest

from showo2.shards import Manifest, ShardError
from showo2.shards.__main__ import inspect, verify
from tests.shards.conftest import ROWS


def test_load_from_file_folder_and_dataset(dataset):
    for path in (os.path.join(dataset.root, "manifest.json"), dataset.root, os.path.dirname(dataset.root)):
        assert Manifest.load(path) == dataset
    assert (dataset.rows, dataset.buckets) == (ROWS, [(1, 4, 6)])
    assert dataset.totals() == {"web pair 1x4x6": ROWS}


def test_hash_is_of_the_content(dataset):
    assert dataclasses.replace(dataset, root="/elsewhere").hash == dataset.hash
    assert dataclasses.replace(dataset, name="other").hash != dataset.hash


def test_what_is_no_manifest_is_named(tmp_path):
    with pytest.raises(ShardError, match="run jobs.encode --data"):
        Manifest.load(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ShardError, match="is no manifest of shards"):
        Manifest.load(str(tmp_path))


def test_commands(dataset, capsys):
    inspect(dataset.root)
    assert "web pair 1x4x6: 150 rows" in capsys.readouterr().out
    inspect(os.path.join(dataset.root, "a.arrow"))
    assert "vaehash" in capsys.readouterr().out
    assert verify(dataset.root) == 0 == verify(os.path.join(dataset.root, "a.arrow"))
    with open(os.path.join(dataset.root, "a.text.arrow"), "r+b") as file:
        content = file.read()
        file.seek(content.index(b"caption 20"))
        file.write(b"C")
    assert verify(os.path.join(dataset.root, "a.arrow")) == 1
    assert "row 20" in capsys.readouterr().out
    reader = dataset.open(dataset.shards[0])
    with open(reader.path, "r+b") as file:
        file.seek(int(reader._fixed.offsets[0]))
        file.write(b"\xff" * 700)
    assert verify(dataset.root) == 2
    assert f"uid {reader.uid(0)}" in capsys.readouterr().out
    os.unlink(reader.text_path)
    assert verify(dataset.root) == 2
    assert "a.text.arrow is missing" in capsys.readouterr().out.replace("\n", "")
