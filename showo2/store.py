"""Files and folders that lie on this machine or, by URL, on an object store: what a run keeps, and models.

On a store a file appears whole, when its upload is completed, or not at all; there is no rename. Nothing is remembered
between calls: other machines write there too.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import xxhash

from showo2.shards import ShardError
from showo2.shards.remote import PIECE, cache_folder, is_remote, retried

T = TypeVar("T")
Digest = list[int | str]  # size and xxh3 of a file's content, as JSON gives it back


class StoreError(OSError):
    """An object store refuses, or has failed at every try; the message names the URL and what to look at."""


class Place:
    """A file or folder: a path, or the URL of an object store. Methods on a store try again where it fails.

    They raise StoreError where it keeps failing or refuses, another OSError on this machine.
    """

    def __init__(self, where: Where):
        self.where = str(where).rstrip("/") if is_remote(str(where)) else str(Path(str(where)))

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.where}/{name}") if self.remote else Place(Path(self.where) / name)

    def __str__(self) -> str:
        return self.where

    def __repr__(self) -> str:
        return f"Place({self.where!r})"

    @property
    def remote(self) -> bool:
        """Whether this is on an object store."""
        return is_remote(self.where)

    @property
    def name(self) -> str:
        """The last part of the path or URL."""
        return self.where.rsplit("/", 1)[-1]

    @property
    def path(self) -> Path:
        """The path on this machine; ValueError on a store."""
        if self.remote:
            raise ValueError(f"{self} is not on this machine")
        return Path(self.where)

    def size(self) -> int | None:
        """Bytes of the file; None where there is none."""
        if self.remote:
            info = self._find(lambda fs, path: fs.info(path))
            return None if info is None or info["type"] != "file" else int(info["size"])
        return self.path.stat().st_size if self.path.is_file() else None

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.size() is not None

    def names(self) -> list[str]:
        """Names of the files and folders in this folder; none where it does not exist."""
        if self.remote:
            found = self._find(lambda fs, path: [n.removeprefix(path).strip("/") for n in fs.ls(path, detail=False)])
            return sorted({*(found or []), ""} - {""})  # A store may name the folder itself.
        return sorted(os.listdir(self.path)) if self.path.is_dir() else []

    def read(self, start: int | None = None, stop: int | None = None) -> bytes | None:
        """The file's content, or bytes `start` to `stop` of it; None where there is no such file."""
        if self.remote:
            return self._find(lambda fs, path: fs.cat_file(path, start=start, end=stop))
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            file.seek(start or 0)
            return file.read(-1 if stop is None else stop - (start or 0))

    def write(self, data: bytes) -> None:
        """Make `data` the file's content, whole or not at all; the folder is made."""
        if self.remote:
            return self._do(lambda fs, path: fs.pipe_file(path, data))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.name}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path)

    def remove(self) -> None:
        """Delete the file, or the folder with all that is in it; nothing happens where there is none."""
        if self.remote:
            # Not fs.rm: it takes "*" and "[" in a name for a pattern.
            for file in self._find(lambda fs, path: fs.find(path)) or []:
                self._find(partial(_drop, file))
        elif self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def digest(self) -> Digest:
        """Size and hash of the file's content, read in pieces; FileNotFoundError where there is none."""
        size = self.size()
        if size is None:
            raise FileNotFoundError(f"{self} does not exist")
        digest = xxhash.xxh3_128()
        for start in range(0, size, PIECE):
            digest.update(self.read(start, min(start + PIECE, size)) or b"")
        return [size, digest.hexdigest()]

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """A stream into a file of a store, sent piece by piece; the file is there when it is closed without an error."""
        fs, path = _open(self.where)
        stream = Upload(fs.open(path, "wb"))
        try:
            yield stream
        except BaseException:
            stream.discard()
            raise
        stream.close()

    def put(self, folder: Path, last: Sequence[str] = ()) -> None:
        """Upload the files of `folder` into this folder of a store; those named `last` come last, in that order."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files.sort(key=lambda path: last.index(path.name) if path.name in last else -1)
        for file in files:
            (self / file.relative_to(folder).as_posix())._do(partial(_put, str(file)))

    def _do(self, call: Callable[[Any, str], T]) -> T:
        """What `call` makes of the store and the path in it, in several tries."""
        fs, path = _open(self.where)
        try:
            return retried(self.where, lambda: call(fs, path), "and who may write there")
        except ShardError as error:
            raise StoreError(str(error)) from error

    def _find(self, call: Callable[[Any, str], T]) -> T | None:
        """As `_do`; None where nothing is there."""
        def tried(fs: Any, path: str) -> T | None:
            try:
                return call(fs, path)
            except FileNotFoundError:
                return None

        return self._do(tried)


Where = str | os.PathLike[str] | Place


class Upload(io.RawIOBase):
    """A stream of a store's file that is written, and the digest of what was."""

    def __init__(self, file: Any):
        self._file, self._hash = file, xxhash.xxh3_128()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Add to the file."""
        self._hash.update(data)
        self._file.write(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        """Complete the upload."""
        if not self.closed:
            self._file.close()
        super().close()

    def discard(self) -> None:
        """Give up: nothing appears."""
        with suppress(Exception):  # It is given up because of a first error, which is the one to tell.
            self._file.discard()
        self._file.closed = True
        super().close()

    @property
    def digest(self) -> Digest:
        """See `Place.digest`."""
        return [self.tell(), self._hash.hexdigest()]


def local_folder(url: str, needs: str) -> Path:
    """A copy on this machine of the files in the folder at `url`, without its subfolders; made once for all processes.

    It lies beside the cache of shards, and stays until what is at `url` has changed and is asked for again.
    needs: a file that must be there. Raises FileNotFoundError where it is not, StoreError where the store fails.
    """
    place = Place(url)
    versions = place._do(_versions)
    if needs not in versions:
        raise FileNotFoundError(f"{url} has no {needs}: name the folder of a saved model")
    kept = Path(f"{cache_folder()}-folders") / _key(place.where)
    target = kept / _key(repr(sorted(versions.items())))
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            part = kept / "part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for name in versions:
                (place / name)._do(partial(_fetch, str(part / name)))
            for old in kept.iterdir():
                if old.is_dir() and old != part:
                    shutil.rmtree(old)
            part.rename(target)
    return target


def fetched(spec: Where) -> str:
    """Of a model at the URL of an object store: its copy on this machine. Anything else comes back unchanged."""
    return str(local_folder(str(spec), "config.json") if is_remote(str(spec)) else spec)


def scratch(place: Place) -> Path:
    """The folder of this machine in which a run works whose folder is `place`, on a store."""
    return Path(f"{cache_folder()}-runs") / _key(place.where)


def _open(url: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(url, use_listings_cache=False)


def _put(file: str, fs: Any, path: str) -> None:
    fs.put_file(file, path)


def _drop(file: str, fs: Any, path: str) -> None:
    fs.rm_file(file)


def _fetch(file: str, fs: Any, path: str) -> None:
    fs.get_file(path, file)


def _versions(fs: Any, path: str) -> dict[str, str]:
    """What tells versions of each file in a folder apart."""
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    names = {file["name"].rsplit("/", 1)[-1]: file["name"] for file in found if file["type"] == "file"}
    return {name: fs.ukey(full) for name, full in names.items() if name}


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
