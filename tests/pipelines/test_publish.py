"""Publishing: whole files or none, records as the truth, leftovers of dead writers only."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.publish import (
    Unit,
    collect_leftovers,
    compile_manifest,
    done,
    fingerprint,
    publish,
    publish_record,
    read_bytes,
    read_json,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), PLAIN))
def test_fingerprint_ignores_the_order_of_keys(value):
    assert fingerprint(value) == fingerprint(dict(reversed(list(value.items()))))
    assert fingerprint(value) != fingerprint(value, value)


def test_unit_id_depends_on_the_range_and_not_on_the_place_in_the_list():
    unit = Unit("web", "/data/0.tar", 0, 0, 1000)
    assert unit.id == Unit("web", "/data/0.tar", 7, 0, 1000).id
    assert unit.id != Unit("web", "/data/0.tar", 0, 1000, 2000).id
    assert unit.id != Unit("synthetic", "/data/0.tar", 0, 0, 1000).id


def test_publish_returns_the_same_entry_for_bytes_and_writer(tmp_path):
    one = publish(str(tmp_path), "facts/a.bin", b"abc" * 1000)
    two = publish(str(tmp_path), "facts/a.bin", lambda file: file.write(b"abc" * 1000) and None)
    assert one == two and one["bytes"] == 3000
    assert read_bytes(str(tmp_path), "facts/a.bin") == b"abc" * 1000
    assert [p.name for p in (tmp_path / "facts").iterdir()] == ["a.bin"]


def test_a_failing_writer_leaves_the_old_file_and_no_temporary(tmp_path):
    publish(str(tmp_path), "a", b"old")

    def fail(file):
        file.write(b"new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        publish(str(tmp_path), "a", fail)
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_done_wants_the_fingerprint_and_the_files(tmp_path):
    root = str(tmp_path)
    for name in "ab":
        entry = publish(root, f"facts/{name}", name.encode())
        publish_record(root, "facts", name, {"fingerprint": "f1", "files": [entry], "rows": 1})
    assert list(done(root, "facts", "f1")) == ["a", "b"] and done(root, "facts", "f2") == {}
    (tmp_path / "facts/a").unlink()
    assert list(done(root, "facts", "f1")) == ["b"]
    assert done(root, "nothing") == {}


def test_manifest_does_not_depend_on_the_order_of_publishing(tmp_path):
    hashes = []
    for order in ("ab", "ba"):
        root = str(tmp_path / order)
        for name in order:
            entry = publish(root, f"facts/{name}", name.encode())
            publish_record(root, "facts", name, {"fingerprint": "f", "files": [entry], "rows": 2})
        hashes.append(compile_manifest(root, ["captions", "facts"])["hash"])
    assert hashes[0] == hashes[1]
    assert read_json(root, "manifest.json")["families"]["facts"]["rows"] == 4


def test_sigkill_in_the_middle_of_a_write_leaves_only_a_collectable_file(tmp_path):
    script = (
        "import sys, time\nfrom pipelines.publish import publish\n"
        "def slow(file):\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
        "publish(sys.argv[1], 'facts/x', slow)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    assert collect_leftovers(str(tmp_path)) == []
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until process.wait()
    assert not (tmp_path / "facts/x").exists()
    assert len(collect_leftovers(str(tmp_path))) == 1 and list((tmp_path / "facts").iterdir()) == []
    process.wait()


def test_a_young_temporary_of_another_host_is_left_alone(tmp_path):
    path = Path(tmp_path) / ".x.elsewhere.12.abcd.tmp"
    path.write_bytes(b"")
    assert collect_leftovers(str(tmp_path)) == []
    os.utime(path, (time.time() - 2 * 86400,) * 2)
    assert collect_leftovers(str(tmp_path)) == [str(path)]
