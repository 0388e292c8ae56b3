"""A real local cluster with its job server on loopback, and jobs submitted to it as a user submits them."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Long enough for a busy machine; a head is up in about 9 s, a small job takes about as long.
START_SECONDS, JOB_SECONDS = 120, 150

pytestmark = pytest.mark.timeout(400)

Submit = Callable[..., subprocess.CompletedProcess[str]]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def head_command(folder: str, ports: list[int]) -> list[str]:
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")
    given = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    return [str(BIN / "ray"), "start", "--head", "--block", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}",
            "--num-cpus=2", "--object-store-memory=200000000", "--min-worker-port=0", "--max-worker-port=0",
            "--disable-usage-stats", *given]  # fmt: skip


def wait_until_up(url: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Until the job server answers; a head that died, or takes too long, fails the test with its log."""
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=2).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the head did not come up:\n{log.read_text()}")


def stop(head: subprocess.Popen[bytes]) -> None:
    """The head and every process that it started, and no other Ray."""
    own = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(own, timeout=5)
    for process in alive:
        process.kill()
    head.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that reaches a head with token authentication."""
    base = tmp_path_factory.mktemp("head")
    token, log = "0123456789abcdef" * 4, base / "head.log"
    (base / "token").write_text(token)
    ports = free_ports(5)
    url = f"http://127.0.0.1:{ports[1]}"
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(base / "token"),
        "RAY_API_SERVER_ADDRESS": url,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        "RAY_health_check_failure_threshold": "30",  # a busy machine is not a dead one
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | settings
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with log.open("wb") as out:
            head = subprocess.Popen(head_command(folder, ports), env=environment, stdout=out, stderr=out)
        try:
            wait_until_up(url, token, head, log)
            yield environment
        finally:
            stop(head)


@pytest.fixture
def submit(cluster: dict[str, str]) -> Submit:
    """submit("curate", "--out", ...) runs `ray job submit --working-dir . -- python -m jobs.curate --out ...`."""

    def run(job: str, *options: str) -> subprocess.CompletedProcess[str]:
        line = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", f"jobs.{job}", *options]
        return subprocess.run(
            line, cwd=ROOT, env=cluster, check=False, capture_output=True, text=True, timeout=JOB_SECONDS
        )

    return run


def write_source(path: Path, sizes: list[int]) -> None:
    """A WebDataset tar of plain pictures of the given sides, with captions."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for i, size in enumerate(sizes):
            picture = io.BytesIO()
            Image.new("RGB", (size, size), (40 * i, 90, 200)).save(picture, "JPEG")
            for suffix, data in (("jpg", picture.getvalue()), ("txt", f"picture {i}".encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_jobs_run_on_a_cluster_as_they_do_alone(submit: Submit, tmp_path: Path) -> None:
    write_source(tmp_path / "web" / "00000.tar", [600, 300, 512])
    data = tmp_path / "data"

    curated = submit("curate", "--source", f"web={tmp_path}/web/*.tar", "--out", str(data))
    assert curated.returncode == 0, curated.stdout + curated.stderr
    assert json.loads((data / "report.json").read_text())["total"]["kept"] == 2

    encoded = submit("encode", "--data", str(data), "--vae", "tiny:vae", "--size", "64")
    assert encoded.returncode == 0, encoded.stdout + encoded.stderr
    manifest = json.loads((data / "latents" / "manifest.json").read_text())
    assert sum(shard["rows"] for shard in manifest["shards"]) == 2


def test_a_mistake_fails_the_submitted_job_with_one_line(submit: Submit, tmp_path: Path) -> None:
    refused = submit("curate", "--source", f"web={tmp_path}/nothing/*.tar", "--out", str(tmp_path / "data"))
    assert refused.returncode == 1
    assert "no tar matches" in refused.stdout and "Traceback" not in refused.stdout


def test_the_job_server_asks_for_the_token(cluster: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster['RAY_API_SERVER_ADDRESS']}/api/jobs/", timeout=5)
