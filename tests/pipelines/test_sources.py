"""Sources: patterns, folders and files become units in a fixed order."""

import os

import pytest

from pipelines.sources import InputError, Part, parse_sources, plan


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


def test_links_to_tars_are_followed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob.tar").write_bytes(b"12345")
    (tmp_path / "a.tar").symlink_to(tmp_path / "store" / "blob.tar")
    (shard,) = plan([f"web={tmp_path}"])
    assert shard.bytes == 5 and shard.unit.path == str(tmp_path / "a.tar")


def test_a_preset_is_named_and_known(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    assert plan([f"web:coyo={tmp_path}"])[0].preset == "coyo"
    with pytest.raises(InputError, match="no preset 'koyo'; known: cc12m, coyo"):
        plan([f"web:koyo={tmp_path}"])
    with pytest.raises(InputError, match="two presets, coyo and cc12m"):
        plan([f"web:coyo={tmp_path}", f"web:cc12m={tmp_path}"])


def test_a_part_is_the_same_in_every_run(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.tar").write_bytes(b"")
    some = plan([f"web={tmp_path}"], Part(sample=0.25))
    assert len(some) == 5 and some == plan([f"web={tmp_path}"], Part(sample=0.25))
    assert [shard.unit.index for shard in plan([f"web={tmp_path}"], Part(limit=2))] == [0, 1]
    with pytest.raises(InputError, match="share in"):
        plan([f"web={tmp_path}"], Part(sample=2))


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
