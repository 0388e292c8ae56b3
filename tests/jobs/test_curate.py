"""jobs.curate as a user runs it: mistakes are told in one line."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.curate import main


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


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Not root, who may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_source_without_permission_is_named(monkeypatch, capsys):
    # Not tmp_path, which lies in a folder that only its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        Path(folder, "a.tar").write_bytes(bytes(1024))
        Path(folder, "a.tar").chmod(0)
        monkeypatch.setattr(sys, "argv", ["curate", "--source", f"web={folder}/a.tar", "--out", f"{folder}/o"])
        with nobody(), pytest.raises(SystemExit):
            main()
        assert f"no permission to read {folder}/a.tar" in capsys.readouterr().err
