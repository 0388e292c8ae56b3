"""The manifest: which shards a dataset has. Compiled from unit records, free of time, workers and order."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from showo2.shards.format import FORMAT, Bucket, ShardError
from showo2.shards.reader import ShardReader
from showo2.shards.remote import is_remote, read_whole


@dataclass(frozen=True)
class Shard:
    """One shard: paths relative to the manifest's folder, rows of one source, kind and bucket, size and hash.

    bytes and xxh3 are of the latents file, unit is the id of the unit that it was made of.
    """

    path: str
    text_path: str
    teacher_path: str | None
    source: str
    kind: str
    bucket: Bucket
    rows: int
    bytes: int
    xxh3: str
    unit: str


@dataclass(frozen=True)
class Manifest:
    """The shards of a dataset in a fixed order (by path), and what made them."""

    name: str
    shards: tuple[Shard, ...]
    fingerprints: dict[str, str] = field(default_factory=dict)
    root: str = "."

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def buckets(self) -> list[Bucket]:
        """Latent buckets that occur, in order."""
        return sorted({shard.bucket for shard in self.shards})

    @property
    def hash(self) -> str:
        """128-bit hex hash of the content; equal hashes mean equal data."""
        return hashlib.blake2b(self.to_json(), digest_size=16).hexdigest()

    def totals(self) -> dict[str, int]:
        """Rows by "source kind TxHxW"."""
        count: Counter[str] = Counter()
        for shard in self.shards:
            count[f"{shard.source} {shard.kind} {bucket_name(shard.bucket)}"] += shard.rows
        return dict(sorted(count.items()))

    def paths(self, shard: Shard, teacher: bool = False) -> list[str]:
        """Whole paths of a shard's latents, its text and, if asked for, the teacher's pictures."""
        names = (shard.path, shard.text_path, *([shard.teacher_path] if teacher and shard.teacher_path else []))
        return [os.path.join(self.root, name) for name in names]

    def open(self, shard: Shard, verify: bool = True) -> ShardReader:
        """A reader of one of the shards."""
        text, teacher = (p and os.path.join(self.root, p) for p in (shard.text_path, shard.teacher_path))
        return ShardReader(os.path.join(self.root, shard.path), text, teacher, verify)

    def readers(self) -> Iterator[tuple[Shard, ShardReader]]:
        """Every shard with its reader."""
        return ((shard, self.open(shard)) for shard in self.shards)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in `manifest.json`."""
        shards = [asdict(shard) for shard in self.shards]
        return {"format": FORMAT, "name": self.name, "fingerprints": self.fingerprints, "rows": self.rows,
                "totals": self.totals(), "buckets": [list(b) for b in self.buckets], "shards": shards}

    def to_json(self) -> bytes:
        """Canonical JSON: equal manifests give equal bytes."""
        return (json.dumps(self.as_dict(), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def load(cls, path: str) -> Manifest:
        """Read a manifest: the file, its folder, or a dataset's folder with `latents/manifest.json`; local or a URL."""
        file, content = _find(os.fspath(path))
        values = json.loads(content)
        if not isinstance(values, dict) or "shards" not in values or values.get("format") != FORMAT:
            raise ShardError(f"{file} is no manifest of shards of format {FORMAT}; run jobs.encode")
        shards = tuple(Shard(**{**shard, "bucket": tuple(shard["bucket"])}) for shard in values["shards"])
        return cls(values["name"], shards, values["fingerprints"], os.path.dirname(file))


def _find(path: str) -> tuple[str, bytes]:
    """The manifest's path and content."""
    inside = (os.path.join(path, "latents", "manifest.json"), os.path.join(path, "manifest.json"))
    for candidate in (path, *inside):
        if is_remote(path):
            if candidate.endswith(".json") and (content := read_whole(candidate)) is not None:
                return candidate, content
        elif os.path.isfile(candidate):
            return candidate, Path(candidate).read_bytes()
    raise ShardError(f"{path} holds no latents/manifest.json; run jobs.encode --data {path}")


def bucket_name(bucket: Bucket) -> str:
    """(1, 8, 8) -> "1x8x8", as folders are named."""
    return "x".join(map(str, bucket))
