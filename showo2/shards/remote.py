"""Shards on object stores: whole files in a cache on disk, of a limited size, shared by a machine's processes.

A cached file is a whole one: it is downloaded under the name NAME.part, whose writer holds a lock on it that the
kernel takes back when the writer dies, and then renamed. So a killed process leaves nothing that must be cleaned up
by hand: the next one takes its .part over. Where there is no room, the file that was used longest ago goes. Readers
that still have it open go on reading it, and nobody waits for anybody but the one who downloads the same file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import fsspec

from showo2.shards.format import ShardError

PIECE = 16 << 20  # bytes of one request
TRIES = 7
FIRST_WAIT = 0.2  # seconds before the second try; doubled for each further one
_GONE = (FileNotFoundError, PermissionError)
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Whether `path` is a URL of a store rather than a file of this machine."""
    return "://" in path and not path.startswith("file://")


def cache_folder() -> str:
    """Where copies live: $SHOWO2_CACHE, else a folder of this user under the temporary one."""
    return os.environ.get("SHOWO2_CACHE") or os.path.join(tempfile.gettempdir(), f"showo2-cache-{os.getuid()}")


def cache_limit() -> int:
    """Bytes that the copies may take: $SHOWO2_CACHE_GB, else half of what the disk has free or the cache holds."""
    gigabytes = os.environ.get("SHOWO2_CACHE_GB")
    if gigabytes:
        return int(float(gigabytes) * 1e9)
    folder = cache_folder()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    disk = os.statvfs(folder)
    return (disk.f_bavail * disk.f_frsize + sum(size for _, size, _ in _held(folder))) // 2


def read_whole(url: str) -> bytes | None:
    """The content of a small remote file; None where there is none."""
    fs, path = fsspec.core.url_to_fs(url)

    def get() -> bytes | None:
        try:
            return fs.cat_file(path)
        except FileNotFoundError:
            return None

    return retried(url, get)


def local_copy(url: str, wait: bool = True) -> str:
    """The path of a copy of `url` on this machine, downloaded if it is not there.

    wait: for another process that downloads the same file; if not, the path may not be there yet. Raises ShardError
    where the store does not have it or keeps failing, or where it fits neither the cache nor the disk.
    """
    fs, path = fsspec.core.url_to_fs(url)
    folder = cache_folder()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    target = os.path.join(folder, hashlib.blake2b(url.encode(), digest_size=16).hexdigest())
    if _use(target):
        return target
    size = int(retried(url, lambda: fs.info(path))["size"])
    with _part(f"{target}.part", wait) as descriptor:
        if descriptor is not None and not _use(target):
            _make_room(folder, size, cache_limit(), url)
            _download(url, lambda a, b: fs.cat_file(path, start=a, end=b), size, descriptor, folder)
            os.rename(f"{target}.part", target)
    return target


class Prefetch:
    """Downloads lists of files in the background; the newest list takes the place of what is left of the last one."""

    def __init__(self) -> None:
        self._wanted: list[str] = []
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, paths: Sequence[str]) -> None:
        """Fetch the remote ones of `paths` in this order, as far as the cache holds all of them."""
        self._wanted = [path for path in paths if is_remote(path)]
        if self._wanted:
            self._pool = self._pool or ThreadPoolExecutor(1, "prefetch")
            self._pool.submit(self._fetch, self._wanted)

    def _fetch(self, wanted: list[str]) -> None:
        limit, total = cache_limit(), 0
        for url in wanted:
            if wanted is not self._wanted:
                return
            fs, path = fsspec.core.url_to_fs(url)
            total += int(retried(url, partial(fs.info, path))["size"])
            if total > limit:
                return  # More would push out what is read now.
            # What another process downloads just now is left to it. An error is raised by whoever reads the file.
            local_copy(url, wait=False)


def _use(target: str) -> bool:
    """Whether the copy is there; if so it counts as used now."""
    try:
        os.utime(target)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _part(path: str, wait: bool) -> Iterator[int | None]:
    """An open and locked .part file, gone afterwards; None where another process holds it and we do not wait."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        if _is(descriptor, path):
            break
        os.close(descriptor)  # Whoever held it before us has renamed or removed it.
    try:
        yield descriptor
    finally:
        if _is(descriptor, path):
            os.unlink(path)
        os.close(descriptor)


def _is(descriptor: int, path: str) -> bool:
    try:
        return os.fstat(descriptor).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False


def _held(folder: str) -> list[tuple[float, int, str]]:
    """(time of last use, bytes on disk, path) of every file of the cache, oldest first."""
    found = []
    for entry in os.scandir(folder):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        found.append((status.st_mtime, status.st_blocks * 512, entry.path))
    return sorted(found)


def _make_room(folder: str, size: int, limit: int, url: str) -> None:
    """Remove what was used longest ago until `size` more bytes stay within `limit`."""
    if size > limit:
        raise ShardError(f"{url} takes {size:,} bytes, but the cache {folder} may take {limit:,}; raise "
                         "SHOWO2_CACHE_GB or name a larger disk in SHOWO2_CACHE")
    held = _held(folder)
    total = sum(taken for _, taken, _ in held)
    for _, taken, path in held:
        if total + size <= limit:
            return
        if _remove(path):
            total -= taken


def _remove(path: str) -> bool:
    """Delete a copy, or a .part whose writer is dead."""
    if path.endswith(".part"):
        with _part(path, wait=False) as descriptor:
            return descriptor is not None
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    return True


def _download(url: str, get: Callable[[int, int], bytes], size: int, descriptor: int, folder: str) -> None:
    os.ftruncate(descriptor, 0)
    _reserve(url, size, descriptor, folder)

    def piece(start: int, stop: int) -> bytes:
        data = get(start, stop)
        if len(data) != stop - start:
            raise EOFError(f"{len(data)} bytes of {stop - start}")
        return data

    for start in range(0, size, PIECE):
        stop = min(start + PIECE, size)
        os.pwrite(descriptor, retried(url, partial(piece, start, stop)), start)


def _reserve(url: str, size: int, descriptor: int, folder: str) -> None:
    """Take the disk's room before the download, giving up copies of other files where it is full."""
    while size:
        try:
            return os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            oldest = next((path for _, _, path in _held(folder) if _remove(path)), None)
            if oldest is None:
                raise ShardError(f"the disk of the cache {folder} is full: {url} takes {size:,} bytes; free some, or "
                                 "name another disk in SHOWO2_CACHE") from error


def retried(url: str, call: Callable[[], T], cure: str = "or run jobs.encode again") -> T:
    """`call`, again after errors of the store or the network, with waits that double.

    cure: what helps where the store refuses, beside another address and other credentials.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except Exception as error:  # Every store fails in its own way.
            if isinstance(error, _GONE) or "Credentials" in type(error).__name__:
                raise ShardError(f"{url} cannot be read: {type(error).__name__}: {error}; check the address and "
                                 f"the credentials, {cure}") from error
            if attempt + 1 == TRIES:
                raise ShardError(f"{url} failed {TRIES} times, at last with {type(error).__name__}: {error}; the store "
                                 "is down or out of reach") from error
            time.sleep(FIRST_WAIT * 2**attempt * (1 + random.random()) / 2)
    raise AssertionError("unreachable")
