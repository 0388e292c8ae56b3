"""A private cluster is private, cleans up after the killed, and lets workers import the project."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs import _ray

ROOT = Path(__file__).resolve().parents[2]


def test_workers_import_the_project(ray_session: None) -> None:
    import ray

    @ray.remote
    def where() -> str:
        import showo2

        return showo2.__file__

    assert Path(ray.get(where.remote())).parents[1] == ROOT


def test_every_process_listens_on_loopback_alone(ray_session: None) -> None:
    own = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {c.laddr.ip for p in own for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening and all(address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for address in listening)


def test_connecting_again_changes_nothing(ray_session: None) -> None:
    import ray

    before = ray.get_runtime_context().gcs_address
    _ray.connect()
    assert ray.get_runtime_context().gcs_address == before


def test_what_the_killed_left_is_removed_and_the_living_keep_theirs(tmp_path, monkeypatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setattr(_ray, "_short_folder", lambda: str(tmp_path))
    for owner in (gone.pid, os.getpid(), 1):
        (tmp_path / f"showo2-ray-{owner}-x" / "session").mkdir(parents=True)
    (tmp_path / "somebody-else").mkdir()
    _ray._remove_orphans()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"showo2-ray-{os.getpid()}-x", "showo2-ray-1-x", "somebody-else"}


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(ConnectionError, match="no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1: .*unset RAY_ADDRESS"):
        _ray._attach("127.0.0.1:1")
