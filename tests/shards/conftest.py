import hashlib
from pathlib import Path

import numpy as np
import pytest

from showo2.shards import Manifest, Shard, ShardSchema, TextRow, write_latents, write_teacher, write_text

ROWS = 150


@pytest.fixture
def schema() -> ShardSchema:
    fingerprints = {"latents": "f"}
    return ShardSchema("web", "pair", (1, 4, 6), "vaehash", (0.5,) * 16, (2.0,) * 16, "center", fingerprints)


@pytest.fixture
def uids() -> list[str]:
    return [hashlib.md5(str(i).encode()).hexdigest() for i in range(ROWS)]


@pytest.fixture
def latents() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, 16, 1, 4, 6)).astype(np.float16)


@pytest.fixture
def dataset(tmp_path: Path, schema: ShardSchema, uids: list[str], latents: np.ndarray) -> Manifest:
    """One shard of 150 rows (two batches and a bit) with both sidecars, and its manifest."""
    folder = tmp_path / "data" / "latents"
    folder.mkdir(parents=True)
    sizes = np.stack([np.arange(ROWS), np.full(ROWS, 700)], 1).astype(np.int32)
    crops = np.tile(np.array([1, 2, 3, 4], np.int32), (ROWS, 1))
    with open(folder / "a.arrow", "wb") as file:
        write_latents(file, schema, uids, latents, sizes, crops)
    with open(folder / "a.text.arrow", "wb") as file:
        texts = [TextRow(uid, f"caption {i} é", captioner="c") for i, uid in enumerate(uids)]
        write_text(file, schema, texts)
    with open(folder / "a.teacher.arrow", "wb") as file:
        write_teacher(file, schema, uids, [b"jpeg%d" % i for i in range(ROWS)])
    size = (folder / "a.arrow").stat().st_size
    paths = ("a.arrow", "a.text.arrow", "a.teacher.arrow")
    shard = Shard(*paths, "web", "pair", (1, 4, 6), ROWS, size, "0", "unit")
    manifest = Manifest("test", (shard,), {"latents": "f"}, str(folder))
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return manifest
