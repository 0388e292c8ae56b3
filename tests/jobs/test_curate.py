"""jobs.curate as a user runs it: stopped in every rude way it goes on, and mistakes are told in one line."""

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from jobs.curate import main
from pipelines.curate import CurateConfig, curate

PROJECT = Path(__file__).parents[2]
TARS, ROWS = 150, 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small tars, so that a run lasts long enough to be killed in the middle."""
    import io

    from PIL import Image

    folder = tmp_path_factory.mktemp("many")
    for number in range(TARS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for row in range(ROWS):
                picture = io.BytesIO()
                Image.new("RGB", (520, 520), (number, 50 * row, 9)).save(
                    picture, "jpeg", comment=b"%d %d" % (number, row)
                )
                for extension, data in (("jpg", picture.getvalue()), ("txt", b"a plain picture")):
                    info = tarfile.TarInfo(f"{number:05d}{row:04d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def start(source: Path, out: Path) -> subprocess.Popen:
    """The job, in a process group of its own like a terminal's."""
    command = [sys.executable, "-m", "jobs.curate", "--source", f"web={source}/*.tar", "--out", str(out)]
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_units(out: Path, process: subprocess.Popen, count: int) -> None:
    """Return as soon as `count` facts records are there."""
    records = out / "units" / "facts"
    while not records.is_dir() or len(os.listdir(records)) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def published(root: Path) -> dict[str, bytes]:
    """Everything that must not depend on how the run went."""
    skip = ("report.html", "report.json", "curate.json")
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in skip]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def kill_a_worker(process: subprocess.Popen) -> None:
    """SIGKILL one Ray worker that works on units."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # some come and go while we look
            for child in psutil.Process(process.pid).children(recursive=True):
                if "".join(child.cmdline()[:1]).startswith("ray::Map"):
                    child.kill()
                    return
        time.sleep(0.005)


@pytest.mark.timeout(400)
def test_ctrl_c_and_sigkill_of_driver_and_worker_change_no_byte(source, tmp_path, ray_session):
    out = tmp_path / "killed"
    job = start(source, out)
    wait_for_units(out, job, 1)
    os.killpg(job.pid, signal.SIGINT)
    output = job.communicate(timeout=100)[0]
    assert job.returncode == 130, output
    assert "run the same command again" in output and "Traceback" not in output, output

    interrupted = len(os.listdir(out / "units" / "facts"))
    job = start(source, out)
    wait_for_units(out, job, interrupted + 1)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    killed = len(os.listdir(out / "units" / "facts"))
    assert 0 < interrupted < killed < TARS, (interrupted, killed)

    job = start(source, out)
    wait_for_units(out, job, killed + 1)
    kill_a_worker(job)
    output = job.communicate(timeout=150)[0]
    assert job.returncode == 0, output
    assert f"kept {TARS * ROWS:,} of {TARS * ROWS:,} rows" in output

    curate(CurateConfig((f"web={source}/*.tar",), str(tmp_path / "calm"), workers=1))
    assert published(out) == published(tmp_path / "calm")


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
