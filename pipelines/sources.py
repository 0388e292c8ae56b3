"""From `NAME=PATH` or `NAME:PRESET=PATH` on a command line to the units of work: one input tar each."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.presets import PRESETS
from pipelines.publish import Unit, filesystem, is_local

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_WILDCARD = re.compile(r"[*?\[]")
DEFAULT = "img2dataset"


class InputError(ValueError):
    """A user's mistake: the message names the thing and the cure."""


@dataclass(frozen=True)
class InputShard:
    """A unit and the state of its tar: `version` changes whenever the file does (mtime or ETag)."""

    unit: Unit
    bytes: int
    version: str
    preset: str = DEFAULT


@dataclass(frozen=True)
class Part:
    """Which tars of each source a run looks at: for a first look at a large source."""

    limit: int | None = None
    """At most so many, the first by path."""
    sample: float = 1.0
    """About this share, the same in every run, and at least one."""

    def of(self, shards: list[InputShard]) -> list[InputShard]:
        """The part of one source's shards. InputError where a number is out of range."""
        if not 0 < self.sample <= 1 or (self.limit is not None and self.limit < 1):
            raise InputError("--part.sample is a share in (0, 1], --part.limit at least 1")
        drawn = sorted(shards, key=lambda shard: shard.unit.id)[: max(1, round(self.sample * len(shards)))]
        return sorted(drawn, key=lambda shard: shard.unit.path)[: self.limit]


WHOLE = Part()


def parse_sources(specs: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """{name: (preset, [path, ...])} of `NAME=PATH` and `NAME:PRESET=PATH`; the same name may come several times.

    Raises InputError for an argument of another form, and for an unknown preset.
    """
    sources: dict[str, tuple[str, list[str]]] = {}
    for spec in specs:
        name, equals, path = spec.partition("=")
        name, colon, preset = name.partition(":")
        if not equals or not path or not _NAME.fullmatch(name):
            raise InputError(f"source {spec!r} is not of the form NAME=PATH, for example web=DIR/web/*.tar")
        preset = preset if colon else DEFAULT
        if preset not in PRESETS:
            raise InputError(f"source {name}: no preset {preset!r}; known: {', '.join(sorted(PRESETS))}")
        known, paths = sources.setdefault(name, (preset, []))
        if known != preset:
            raise InputError(f"source {name} has two presets, {known} and {preset}; give each a name of its own")
        paths.append(path)
    if not sources:
        raise InputError("no source given: add --source NAME=PATH, for example --source web=DIR/web/*.tar")
    return sources


def plan(specs: Sequence[str], part: Part = WHOLE) -> list[InputShard]:
    """The shards of `part` of all sources, by name of the source and path, without reading any.

    A path is a tar, a folder of tars or a pattern, local or any fsspec URL. Raises InputError where nothing
    matches, a file is no tar by its name or cannot be read.
    """
    shards = []
    for source, (preset, paths) in sorted(parse_sources(specs).items()):
        found = {shard[0]: shard for path in paths for shard in _find(source, path)}
        own = [
            InputShard(Unit(source, path, index), size, version, preset)
            for index, (path, size, version) in enumerate(sorted(found.values()))
        ]
        shards += part.of(own)
    return shards


def _find(source: str, path: str) -> list[tuple[str, int, str]]:
    """(path, bytes, version) of the tars that one argument names."""
    try:
        fs, inner = filesystem(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"source {source}: {path} cannot be opened: {error}") from error
    local = is_local(fs)
    fs.invalidate_cache()  # what others wrote since this process last looked
    try:
        if _WILDCARD.search(inner):
            infos = list(fs.glob(inner, detail=True).values())
        elif fs.isdir(inner):
            infos = list(fs.glob(f"{inner}/*.tar", detail=True).values())
        else:
            infos = [fs.info(inner)]
    except FileNotFoundError as error:
        raise InputError(f"source {source}: {path} does not exist") from error
    except PermissionError as error:
        raise InputError(f"source {source}: no permission to read {path}") from error
    except Exception as error:  # every store fails in its own way: no credentials, no such host
        raise InputError(f"source {source}: {path} cannot be listed: {error}") from error
    infos = [info for info in infos if info["type"] == "file" or fs.isfile(info["name"])]  # links too
    if not infos:
        raise InputError(f"source {source}: no tar matches {path}; check the path, and quote patterns")
    return [_shard(source, fs.unstrip_protocol(info["name"]), info, local) for info in infos]


def _shard(source: str, path: str, info: dict[str, Any], local: bool) -> tuple[str, int, str]:
    if not info["name"].endswith(".tar"):
        cure = " (decompress it first)" if info["name"].endswith((".gz", ".zst", ".bz2", ".xz")) else ""
        raise InputError(f"source {source}: {info['name']} is not named .tar{cure}")
    if local:
        path = os.path.abspath(info["name"])
        if not os.access(path, os.R_OK, effective_ids=True):
            raise InputError(f"source {source}: no permission to read {path}")
        state = os.stat(path)
        return path, state.st_size, str(state.st_mtime_ns)
    return path, info["size"], str(info.get("ETag") or info.get("mtime") or info.get("LastModified"))


def check_output(root: str) -> None:
    """Make the folder `root`; InputError where that cannot be or it cannot be written to."""
    fs, path = filesystem(root)
    if not is_local(fs):
        return
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}; choose another --out") from error
    if not os.access(path, os.W_OK, effective_ids=True):
        raise InputError(f"no permission to write to {path}; choose another --out")
