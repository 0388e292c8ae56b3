"""The validator names the first bad rows of a source, what is wrong and the cure, and writes nothing."""

import json

import pytest

from jobs import _check
from pipelines.sources import InputError
from tests.pipelines.conftest import picture, write_tar
from tests.pipelines.videos import CARPHONE

TURNS = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a man"}]


def test_every_planted_trouble_is_named_with_its_cure(planted, capsys):
    assert _check.main(["--check", str(planted.folder)]) == 1
    told = capsys.readouterr().out
    bad = {key for key, account in planted.accounts.items() if account.startswith("failed") or "missing" in account}
    for key in bad:
        assert f"{key}: " in told
    assert "0008008: missing_image (members: txt); each key needs one picture or video" in told
    assert "0008007: caption_encoding (not UTF-8" in told and "write texts as UTF-8" in told
    assert f"{len(bad)} bad" in told


def test_good_data_of_every_kind_passes(tmp_path, capsys):
    talk = json.dumps({"conversations": TURNS}).encode()
    write_tar(tmp_path / "0.tar", [("a.jpg", picture(1)), ("a.txt", b"a picture"), ("b.jpg", picture(2)), ("b.json", talk),
                                   ("c.mp4", CARPHONE.read_bytes()), ("c.txt", b"a man in a car")])
    before = sorted(tmp_path.iterdir())
    assert _check.main(["--check", f"mine={tmp_path}"]) == 0
    assert "1 conversations, 1 pairs, 1 videos; 0 bad: ready for jobs.curate" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_a_source_is_read_as_its_preset_says(tmp_path, capsys):
    write_tar(tmp_path / "0.tar", [("a.mp4", CARPHONE.read_bytes()), ("a.json", b'{"caption": "a man", "aesthetic score": 5}')])
    assert _check.main(["--check", f"videos:openvid={tmp_path}"]) == 0
    assert "1 videos; 0 bad" in capsys.readouterr().out


def test_only_the_first_are_named_but_all_are_counted(tmp_path, capsys):
    write_tar(tmp_path / "0.tar", [(f"{i}.txt", b"alone") for i in range(9)])
    write_tar(tmp_path / "1.tar", [("p.json", json.dumps({"conversations": [{"from": "me"}]}).encode()),
                                   ("p.jpg", picture(1)), ("q.jpg", picture(2)), ("q.txt", b"q")])
    write_tar(tmp_path / "2.tar", [("q.jpg", picture(3)), ("q.txt", b"again")])
    assert _check.main(["--check", str(tmp_path), "--first", "3"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 and "{'missing_image': 9, 'bad_conversation': 1, 'repeated_key': 1}" in told[-1]


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        _check.main(["--check", str(tmp_path / "nowhere")])
