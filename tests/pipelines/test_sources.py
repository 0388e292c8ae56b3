"""Sources: patterns, folders and files become units in a fixed order."""

import os

import pytest

from pipelines.sources import InputError, parse_sources, plan


def test_patterns_folders_and_files_give_the_same_units(tmp_path):
    for name in ("b.tar", "a.tar", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    by_folder = plan([f"web={tmp_path}"])
    assert (
        by_folder
        == plan([f"web={tmp_path}/*.tar"])
        == plan([f"web={tmp_path}/b.tar", f"web={tmp_path}/*a.tar"])
    )
    assert [os.path.basename(shard.unit.path) for shard in by_folder] == ["a.tar", "b.tar"]
    assert [shard.unit.index for shard in by_folder] == [0, 1] and by_folder[0].bytes == 5


def test_a_file_named_twice_counts_once(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    assert len(plan([f"web={tmp_path}/a.tar", f"web={tmp_path}/*.tar"])) == 1


def test_a_changed_tar_has_another_version(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"x")
    before = plan([f"web={path}"])
    os.utime(path, (1, 1))
    after = plan([f"web={path}"])
    assert before[0].unit == after[0].unit and before[0].version != after[0].version


@pytest.mark.parametrize("spec", ["web", "=x", "web=", "we b=x", "../x=y"])
def test_malformed(spec):
    with pytest.raises(InputError, match="NAME=PATH"):
        parse_sources([spec])
