"""jobs.curate as a user runs it: mistakes are told in one line."""

import os
import sys
from pathlib import Path

import pytest

from jobs.curate import main

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out"),
        (["--out", "{tmp}/o"], "--source"),
        (["--source", "web", "--out", "{tmp}/o"], "'web' is not of the form NAME=PATH"),
        (["--source", "web={tmp}/nothing.tar", "--out", "{tmp}/o"], "nothing.tar does not exist"),
        (["--source", "web={tmp}/x*.tar", "--out", "{tmp}/o"], "no tar matches"),
        (["--source", "web={tmp}/a.tar.gz", "--out", "{tmp}/o"], "decompress it first"),
        (["--source", "web={tmp}/a.tar", "--out", "{tmp}/a.tar.gz"], "choose another --out"),
        (["--source", "web={tmp}/a.tar", "--out", "{tmp}/o", "--sauce", "x"], "--sauce"),
        (["--source", "web={tmp}/a.tar", "--out", "{tmp}/o", "--rules.min-side", "big"], "big"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_exits_with_2(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    monkeypatch.setattr(sys, "argv", ["curate", *(argument.format(tmp=tmp_path) for argument in arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    told = captured.err + captured.out
    assert caught.value.code == 2
    assert message in " ".join(told.replace("│", " ").split()) and "Traceback" not in told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_source_without_permission_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    (tmp_path / "a.tar").chmod(0)
    monkeypatch.setattr(
        sys, "argv", ["curate", "--source", f"web={tmp_path}/a.tar", "--out", f"{tmp_path}/o"]
    )
    with pytest.raises(SystemExit):
        main()
    assert f"no permission to read {tmp_path}/a.tar" in capsys.readouterr().err
