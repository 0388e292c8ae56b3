"""jobs.curate as a user runs it: mistakes are told in one line, and a run that was stopped rudely goes on."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from jobs.curate import main
from pipelines.curate import CurateConfig, curate
from tests.pipelines.conftest import write_tar

PROJECT = Path(__file__).parents[2]
TARS, BIG = 16, 64 << 20


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


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of one good row and of one whose "picture" is a hole of 64 MB in the file: no disk space, but long to
    read, so that a run can be stopped in the middle."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(TARS):
        picture = io.BytesIO()
        Image.new("RGB", (520, 520)).save(picture, "jpeg", comment=b"%d" % number)
        path = folder / f"{number:05d}.tar"
        write_tar(path, [(f"{number}.jpg", picture.getvalue()), (f"{number}.txt", b"a plain picture")])
        hole = tarfile.TarInfo(f"{number}hole.jpg")
        hole.size = BIG
        with tarfile.open(path) as tar:
            end = (last := tar.getmembers()[-1]).offset_data + 512 * -(-last.size // 512)
        with path.open("r+b") as file:
            file.seek(end)
            file.write(hole.tobuf())
            file.truncate(end + 512 + BIG + 1024)
    return folder


def done_units(out: Path) -> list[Path]:
    """Facts records so far."""
    return sorted((out / "units" / "facts").glob("*.json"))


def published(root: Path) -> dict[str, bytes]:
    """Everything that must not depend on how the run went."""
    skip = ("report.html", "report.json", "curate.json")
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in skip]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def workers_of(process: psutil.Process, *titles: str) -> list[psutil.Process]:
    """Ray workers by what they call themselves: ray::Map... at work on a unit, ray::IDLE."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):  # some come and go while we look
        for child in process.children(recursive=True):
            if "".join(child.cmdline()[:1]).startswith(titles):
                found.append(child)
    return found


def stop_in_the_middle(source: Path, out: Path, how: signal.Signals) -> str:
    """Start the job, kill one of its workers at its first unit, and send the job a signal when it has done a unit
    more: SIGINT to its group, as a terminal does on Ctrl-C, SIGKILL to itself. Returns what the job said.

    Half of what it did is then forgotten, so that much is left, however late the signal came on a busy machine.
    """
    before = len(done_units(out))
    # A shell's background jobs ignore Ctrl-C, and so would what they start.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "jobs.curate"]
    command += ["--source", f"web={source}/*.tar", "--out", str(out)]
    job = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    family = psutil.Process(job.pid)
    while job.poll() is None and not (workers := workers_of(family, "ray::Map")):
        time.sleep(0.05)
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have gone by itself
        workers[0].kill()
    while len(done_units(out)) <= before and job.poll() is None:
        time.sleep(0.002)
    workers = workers_of(family, "ray::Map", "ray::IDLE")
    (os.killpg if how == signal.SIGINT else os.kill)(job.pid, how)
    output = job.communicate(timeout=100)[0]
    # Tasks that were handed out may end after the signal, so all units may be there; the run has no result yet.
    assert job.returncode == (130 if how == signal.SIGINT else -how), output
    assert not (out / "manifest.json").exists(), output
    assert not psutil.wait_procs(workers, timeout=60)[1], "workers outlive their driver"
    for record in done_units(out)[TARS // 2 :]:
        record.unlink()
    return output


@pytest.mark.timeout(600)
def test_ctrl_c_and_sigkill_of_driver_and_worker_change_no_byte(source, tmp_path, ray_session):
    out, calm = tmp_path / "killed", tmp_path / "calm"
    output = stop_in_the_middle(source, out, signal.SIGINT)
    assert "run the same command again" in output and "Traceback" not in output, output
    stop_in_the_middle(source, out, signal.SIGKILL)
    for folder in (out, calm):
        report = curate(CurateConfig((f"web={source}/*.tar",), str(folder)))
        assert report.total == {"failed:not_an_image": TARS, "kept": TARS}
    assert published(out) == published(calm)
