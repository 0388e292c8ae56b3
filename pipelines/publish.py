"""Publishing: files that appear whole or not at all, and the unit records that are the truth about them.

A *unit* is a fixed range of rows of one input shard: the unit of work, retry, resume and account. Its output
is written to a temporary name, flushed and renamed (on object stores: one completed upload), and only then is
its record written, just as atomically, to ``units/<family>/<unit id>.json``. A killed writer therefore leaves
at worst a temporary file, or a whole file that the next run writes again with the same name and bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
import xxhash

Record = dict[str, Any]
TEMPORARY = ".tmp"
STALE_SECONDS = 24 * 3600
IO_THREADS = 16


def _plain(value: Any) -> Any:
    """What JSON cannot say by itself, in a form that does not depend on the process."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no canonical form: give plain data, a dataclass or a path")


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return text.encode()


def fingerprint(*parts: Any) -> str:
    """128-bit hex hash of plain data, dataclasses and paths: the name of what a file is made from."""
    return hashlib.blake2b(canonical_json(parts), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` (None: to the end) of one input shard, the `index`-th of its source."""

    source: str
    path: str
    index: int = 0
    start: int = 0
    stop: int | None = None

    @property
    def id(self) -> str:
        """Hash of the input range, without `index`: adding a shard to a source renames nothing."""
        return fingerprint("unit", self.source, self.path, self.start, self.stop)

    def as_dict(self) -> dict[str, Any]:
        """The fields, as they stand in a unit record."""
        return dataclasses.asdict(self)


def filesystem(root: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a local path or URL, and the path inside it without a trailing slash."""
    fs, path = fsspec.core.url_to_fs(os.fspath(root))
    return fs, path.rstrip("/") or "/"


def join(root: str, *parts: str) -> str:
    """`root` (path or URL) with relative parts appended."""
    return "/".join([os.fspath(root).rstrip("/"), *parts])


Content = bytes | Callable[[BinaryIO], None]


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """True for a file system that has rename and fsync."""
    return isinstance(fs, fsspec.implementations.local.LocalFileSystem)


def _temporary_name(path: str) -> str:
    """Hidden, and names its writer: only a dead writer's file is ever collected."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{TEMPORARY}")


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _fill(file: BinaryIO, data: Content) -> None:
    if callable(data):
        data(file)
    else:
        file.write(data)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish_local(path: str, data: Content) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            _fill(file, data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def _publish_remote(fs: fsspec.AbstractFileSystem, path: str, data: Content) -> None:
    # Not fs.open: leaving its `with` block on an exception completes the upload of half a file.
    if isinstance(data, bytes):
        fs.pipe_file(path, data)
        return
    with tempfile.NamedTemporaryFile(suffix=TEMPORARY) as file:
        data(cast(BinaryIO, file))
        file.flush()
        fs.put_file(file.name, path)


def publish(root: str, relpath: str, data: Content) -> dict[str, Any]:
    """Write `root/relpath` so that it appears whole or not at all; an older file of that name is replaced.

    `data` is the content or a function that writes it to an open binary file. Returns {"path", "bytes",
    "xxh3"}, the entry for a record's "files".
    """
    seen: dict[str, Any] = {"path": relpath}

    def write(file: BinaryIO) -> None:
        _fill(file, data)
        file.flush()
        with open(file.name, "rb") as back:
            seen["xxh3"] = _hash_file(back)
        seen["bytes"] = os.path.getsize(file.name)

    fs, base = filesystem(root)
    target = f"{base}/{relpath}"
    if isinstance(data, bytes):
        seen |= {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}
        content: Content = data
    else:
        content = write
    if is_local(fs):
        _publish_local(target, content)
    else:
        _publish_remote(fs, target, content)
    return seen


def _hash_file(file: BinaryIO) -> str:
    digest = xxhash.xxh3_128()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def publish_json(root: str, relpath: str, value: Any) -> dict[str, Any]:
    """`publish` of readable JSON (sorted keys, one final newline)."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, default=_plain)
    return publish(root, relpath, (text + "\n").encode())


def publish_record(root: str, family: str, unit_id: str, record: Record) -> None:
    """Declare a unit of a column family done. `record`: {"fingerprint", "files": [...], "rows", ...}."""
    publish_json(root, f"units/{family}/{unit_id}.json", record)


def read_bytes(root: str, relpath: str) -> bytes:
    """The content of `root/relpath`; FileNotFoundError if it was never published."""
    fs, base = filesystem(root)
    return fs.cat_file(f"{base}/{relpath}")


def read_json(root: str, relpath: str) -> Any:
    """The value that `publish_json` wrote."""
    return json.loads(read_bytes(root, relpath))


def records(root: str, family: str, only: Iterable[str] | None = None) -> dict[str, Record]:
    """Unit records of a family by unit id, in order of id; `only` those of the given ids, if they exist."""
    fs, base = filesystem(root)
    folder = f"{base}/units/{family}"
    if only is None:
        names = _listed(fs, folder)
    else:
        names = [f"{folder}/{unit_id}.json" for unit_id in sorted(set(only))]
    with ThreadPoolExecutor(IO_THREADS) as pool:
        values = list(pool.map(lambda name: _content(fs, name), names))
    ids = [os.path.basename(name).removesuffix(".json") for name in names]
    pairs = zip(ids, values, strict=True)
    return {unit_id: json.loads(value) for unit_id, value in pairs if value is not None}


def _listed(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    fs.invalidate_cache(folder)
    try:
        return sorted(name for name in fs.ls(folder, detail=False) if name.endswith(".json"))
    except FileNotFoundError:
        return []


def _content(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return fs.cat_file(path)
    except FileNotFoundError:
        return None


def _whole(fs: fsspec.AbstractFileSystem, base: str, record: Record) -> bool:
    """The record's files are there with their sizes (somebody may have deleted one)."""
    for file in record.get("files", []):
        try:
            if fs.size(f"{base}/{file['path']}") != file["bytes"]:
                return False
        except FileNotFoundError:
            return False
    return True


def done(
    root: str, family: str, wanted: str | None = None, only: Iterable[str] | None = None
) -> dict[str, Record]:
    """Records by unit id whose files are present and, if `wanted` is given, whose "fingerprint" equals it.

    `only`: look at these unit ids and no others.
    """
    fs, base = filesystem(root)
    found = records(root, family, only)
    found = {key: r for key, r in found.items() if wanted is None or r.get("fingerprint") == wanted}
    with ThreadPoolExecutor(IO_THREADS) as pool:
        whole = list(pool.map(lambda record: _whole(fs, base, record), found.values()))
    return {key: record for (key, record), ok in zip(found.items(), whole, strict=True) if ok}


def _writer_is_gone(path: str) -> bool:
    host, pid = os.path.basename(path).split(".")[-4:-2]
    if host == _host() and pid.isdigit():
        return _no_process(int(pid))
    return time.time() - os.path.getmtime(path) > STALE_SECONDS


def _no_process(pid: int) -> bool:
    """True also of a zombie: in a container nobody may ever reap a killed job's workers."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def collect_leftovers(root: str) -> list[str]:
    """Delete the temporary files of killed writers under a local `root` and return their paths.

    A file whose writer still runs on this host is left alone, and so is a foreign host's younger than a day.
    Object stores show no unfinished upload; let a lifecycle rule of the bucket expire their parts.
    """
    fs, base = filesystem(root)
    if not is_local(fs) or not os.path.isdir(base):
        return []
    leftovers = [os.path.join(folder, name) for folder, _, names in os.walk(base) for name in names]
    leftovers = [path for path in leftovers if path.endswith(TEMPORARY) and _writer_is_gone(path)]
    for path in leftovers:
        os.unlink(path)
    return sorted(leftovers)


def compile_manifest(
    root: str, families: Iterable[str], units: Iterable[str] | None = None
) -> dict[str, Any]:
    """Write `root/manifest.json` from the unit records of the given families; those without any are left out.

    `units`: only the records of these unit ids; those of sources that are no longer used stay out.

    Nothing in it depends on time, order or retries; its "hash" identifies the content of the dataset.
    """
    units = None if units is None else list(units)
    sections = {}
    for family in sorted(families):
        found = done(root, family, only=units)
        if found:
            files = sorted((f for r in found.values() for f in r.get("files", [])), key=lambda f: f["path"])
            prints = sorted({r.get("fingerprint", "") for r in found.values()})
            rows = sum(r.get("rows", 0) for r in found.values())
            sections[family] = {"fingerprints": prints, "units": len(found), "rows": rows, "files": files}
    manifest = {"format": 1, "families": sections}
    manifest["hash"] = fingerprint(manifest)
    publish_json(root, "manifest.json", manifest)
    return manifest
