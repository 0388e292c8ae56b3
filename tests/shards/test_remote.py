"""Remote shards: whole copies in a cache of a limited size, whatever the store, the disk and kill -9 do."""

import gc
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import boto3
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from showo2.data.mixture import Entry
from showo2.data.sources import Source
from showo2.shards import Manifest, ShardError, remote
from showo2.shards.remote import Prefetch, local_copy
from tests.train.small import BUCKET, small_dataset

PAIRS = Entry("pairs", "generate", "pair", 1)


class Flaky(BaseHTTPRequestHandler):
    """Passes requests on to the store, after the failures that stand in `plan` for their kind."""

    protocol_version = "HTTP/1.1"
    store = ""
    plan: ClassVar[list[str]] = []
    seen: ClassVar[Counter[str]] = Counter()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        Flaky.seen[self.command] += 1
        trouble = Flaky.plan.pop(0) if Flaky.plan and self.command == "GET" else ""
        if trouble == "slow":
            time.sleep(1.5)
        if trouble in ("500", "503"):
            code = "SlowDown" if trouble == "503" else "InternalError"
            body = f"<Error><Code>{code}</Code><Message>planned</Message></Error>".encode()
            return self._answer(int(trouble), {}, body)
        link = http.client.HTTPConnection(self.store)
        link.request(self.command, self.path, headers=dict(self.headers))
        answer = link.getresponse()
        body, headers = answer.read(), dict(answer.getheaders())
        if trouble == "short":
            self._answer(answer.status, headers, body[:len(body) // 2])
            return None
        if trouble == "cut":
            self._answer(answer.status, headers, body[:len(body) // 2], len(body))
            self.close_connection = True
            return None
        return self._answer(answer.status, headers, body)

    do_HEAD = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes, claimed: int | None = None) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(claimed or len(body))
        kept = {k: v for k, v in headers.items() if k.lower() in ("etag", "last-modified", "content-type", "content-range")}
        for name, value in {**kept, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A dataset on an S3 server, behind the proxy that fails as planned."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    Flaky.store = f"{host}:{port}"
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
                            "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
                            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}"}.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # of other tests' servers
        folder = tmp_path_factory.mktemp("source")
        small_dataset(folder)
        client = boto3.client("s3", endpoint_url=f"http://{Flaky.store}")
        client.create_bucket(Bucket="data")
        for path in (folder / "latents").iterdir():
            client.upload_file(str(path), "data", f"set/latents/{path.name}")
        yield folder
    proxy.shutdown()
    server.stop()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of 10 MB, quick retries, no failures planned; what is fetched ahead ends before the next test."""
    monkeypatch.setenv("SHOWO2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHOWO2_CACHE_GB", "0.01")
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    Flaky.plan.clear()
    Flaky.seen.clear()
    yield tmp_path / "cache"
    gc.collect()  # A prefetch's thread ends, after the file at hand, when nobody holds the prefetch any more.
    for thread in threading.enumerate():
        if thread.name.startswith("prefetch"):
            thread.join(30)
            assert not thread.is_alive()


def size(cache: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in cache.iterdir())


URL = "s3://data/set/latents/web-0.arrow"


def test_rows_are_those_of_the_local_dataset_and_come_once(store, cache):
    here = Source(PAIRS, [Manifest.load(str(store))], BUCKET, 0)
    there = Source(PAIRS, [Manifest.load("s3://data/set")], BUCKET, 0)
    for epoch in range(2):
        places = here.places(np.arange(48 * epoch, 48 * epoch + 48)).tolist()
        assert places == there.places(np.arange(48 * epoch, 48 * epoch + 48)).tolist()
        for one, other in zip(here.read(places), there.read(places), strict=True):
            assert one.uid == other.uid and one.text == other.text and (one.latents == other.latents).all()
    assert len(list(cache.iterdir())) == 4  # two shards, latents and text
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("trouble", ["500", "503", "short", "cut"])
def test_failures_of_the_store_are_tried_again(store, cache, trouble):
    Flaky.plan[:] = [trouble] * 3
    assert Path(local_copy(URL)).read_bytes() == (store / "latents" / "web-0.arrow").read_bytes()
    assert Flaky.plan == []


def test_a_store_that_does_not_answer_in_time_is_asked_again(store, cache, monkeypatch):
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.5)
    s3fs.S3FileSystem.clear_instance_cache()
    Flaky.plan[:] = ["slow"]
    assert Path(local_copy(URL)).read_bytes() == (store / "latents" / "web-0.arrow").read_bytes()
    assert Flaky.plan == []
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_stays_down_is_named(store, cache):
    Flaky.plan[:] = ["503"] * 1000
    with pytest.raises(ShardError, match=r"web-0.arrow failed 7 times, at last with .*out of reach"):
        local_copy(URL)
    Flaky.plan.clear()
    assert list(cache.iterdir()) == []
    with pytest.raises(ShardError, match="nothing.arrow cannot be read: FileNotFoundError"):
        local_copy("s3://data/set/nothing.arrow")
    with pytest.raises(ShardError, match="holds no latents/manifest.json"):
        Manifest.load("s3://data/elsewhere")


def test_what_was_used_longest_ago_goes_and_open_files_are_read_on(store, cache, monkeypatch):
    shard = (store / "latents" / "web-0.arrow").stat().st_size
    monkeypatch.setenv("SHOWO2_CACHE_GB", str(1.5 * shard / 1e9))
    manifest = Manifest.load("s3://data/set")
    first, second = (manifest.open(s) for s in manifest.shards if s.kind == "pair")
    row = first.latents(3)
    second.latents(0)
    assert size(cache) <= 1.5 * shard and first.evicted and not second.evicted
    assert (first.latents(3) == row).all()
    assert (manifest.open(manifest.shards[0]).latents(3) == row).all()  # comes again
    assert size(cache) <= 1.5 * shard


def test_a_cache_smaller_than_a_window_starves_nobody(store, cache, monkeypatch):
    shard = (store / "latents" / "web-0.arrow").stat().st_size
    monkeypatch.setenv("SHOWO2_CACHE_GB", str(1.3 * shard / 1e9))
    source = Source(PAIRS, [Manifest.load("s3://data/set")], BUCKET, 0)
    seen = {row.uid for start in range(0, 48, 4) for row in source.read(source.places(range(start, start + 4)).tolist())}
    assert len(seen) == 48
    assert size(cache) <= 1.3 * shard + 4096


def test_a_file_that_cannot_fit_is_named(store, cache, monkeypatch):
    monkeypatch.setenv("SHOWO2_CACHE_GB", "0.000001")
    with pytest.raises(ShardError, match="but the cache .* may take 1,000; raise SHOWO2_CACHE_GB"):
        local_copy(URL)


def test_a_full_disk_gives_up_old_copies_and_then_is_named(store, cache, monkeypatch):
    old = local_copy("s3://data/set/latents/web-1.arrow")
    real, room = os.posix_fallocate, []

    def allocate(descriptor: int, start: int, length: int) -> None:
        if os.path.exists(old) or not room:
            raise OSError(28, "No space left on device")
        real(descriptor, start, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with pytest.raises(ShardError, match="the disk of the cache .* is full: .* free some, or name another disk"):
        local_copy(URL)
    assert not os.path.exists(old) and list(cache.iterdir()) == []
    room.append(True)
    assert os.path.exists(local_copy(URL))


def test_prefetch_brings_what_will_be_read_and_no_more_than_fits(store, cache, monkeypatch):
    manifest = Manifest.load("s3://data/set")
    paths = [path for shard in manifest.shards for path in manifest.paths(shard)]
    shard = (store / "latents" / "web-0.arrow").stat().st_size
    monkeypatch.setenv("SHOWO2_CACHE_GB", str(2.5 * shard / 1e9))
    fetch = Prefetch()
    fetch(paths)
    fetch._pool.shutdown()
    fetched = {path.name for path in cache.iterdir()}
    assert 0 < len(fetched) < len(paths) and size(cache) <= 2.5 * shard
    Flaky.seen.clear()
    local_copy(paths[0])
    assert not Flaky.seen


KILLED = """
import os, signal, sys
from showo2.shards import remote
reserve = remote._reserve
def die(*arguments):
    reserve(*arguments)
    print("locked", flush=True)
    signal.pause()
remote._reserve = die
remote.local_copy(sys.argv[1])
"""


def test_kill_9_in_a_download_leaves_nothing_in_the_way(store, cache):
    child = subprocess.Popen([sys.executable, "-c", KILLED, URL], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    [part] = cache.iterdir()
    assert part.suffix == ".part" and part.stat().st_size > 0
    assert not os.path.exists(local_copy(URL, wait=False))  # it is being downloaded: nobody waits who does not want to
    waiting = threading.Thread(target=local_copy, args=(URL,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    waiting.join(30)
    assert not waiting.is_alive() and [path.suffix for path in cache.iterdir()] == [""]
    assert Path(local_copy(URL)).read_bytes() == (store / "latents" / "web-0.arrow").read_bytes()


def test_many_readers_download_a_file_once(store, cache):
    Flaky.seen.clear()
    threads = [threading.Thread(target=local_copy, args=(URL,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Flaky.seen["GET"] == 1
