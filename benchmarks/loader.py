"""Random-order reading of equal latents: ours, MosaicML Streaming, LitData and WebDataset, beside a sequential read.

Every reader gives uid and latents of 93,312 bytes as tensors, in shuffled order, from files that lie in the page cache;
ours also checks each row's checksum. The rounds of the readers alternate, each in a process of its own, and medians
count. Then: time and memory to make the order of 66 million rows and to go on from its middle.

    python -m benchmarks.loader --json FILE

The peers get an environment of their own (--peers; made on first use by one pip install).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

from benchmarks._peers import BATCH, SHAPE, measured, rows, timed, warm
from benchmarks._report import Aim, Report, Row
from showo2.data.mixture import Entry
from showo2.data.order import WINDOW, Windows, permute
from showo2.data.sources import Source
from showo2.data.workers import by_workers
from showo2.shards import Manifest, Shard, ShardSchema, TextRow, write_latents, write_text

PEERS = {"mds": "MosaicML Streaming", "litdata": "LitData", "webdataset": "WebDataset"}
PACKAGES = ("torch==2.13.0", "numpy==2.4.6", "mosaicml-streaming==0.10.0", "litdata==0.2.76", "webdataset==1.0.2")
ENTRY = Entry("pairs", "generate", "pair", 1)
BUCKET = (SHAPE[1], SHAPE[2], SHAPE[3])
ROW_BYTES = 2 * int(np.prod(SHAPE))
SHARD_ROWS = 1024
GLOBAL_BATCH = 512
PLANNED = 8 * GLOBAL_BATCH  # samples whose order is computed at once
GIB_ROWS = (1 << 30) // ROW_BYTES


@dataclass(frozen=True)
class Options:
    """json: where the report goes. count: rows. rounds: of each reader. samples: of the order. workers: processes.

    folder: for the data of all formats, four times 93,312 bytes a row. peers: the peers' environment.
    """

    json: str = "build/benchmarks/loader.json"
    count: int = 20480
    rounds: int = 3
    samples: int = 66_000_000
    workers: int = 2
    folder: Path = Path("build/benchmarks/loader")
    peers: Path = Path("build/peers")


def write_ours(folder: Path, count: int) -> None:
    """Shards of 1024 rows with their text."""
    folder.mkdir(parents=True)
    schema = ShardSchema("web", "pair", BUCKET, "none", (0.0,) * 16, (1.0,) * 16, "none")
    source, shards = rows(count), []
    for number in range(-(-count // SHARD_ROWS)):
        uids, latents = zip(*itertools.islice(source, SHARD_ROWS), strict=True)
        name, zeros = f"{number:05d}", np.zeros((len(uids), 4), np.int32)
        with open(folder / f"{name}.arrow", "wb") as file:
            write_latents(file, schema, uids, np.stack(latents), zeros[:, :2], zeros)
        with open(folder / f"{name}.text.arrow", "wb") as file:
            write_text(file, schema, [TextRow(uid, "a caption of the length that captions have " * 4) for uid in uids])
        shards.append(Shard(f"{name}.arrow", f"{name}.text.arrow", None, "web", "pair", BUCKET, len(uids), 0, "", name))
    (folder / "manifest.json").write_bytes(Manifest("benchmark", tuple(shards)).to_json())


def places(source: Source) -> Iterator[list[int]]:
    """The rows of one epoch, `BATCH` at a time."""
    for start in range(0, source.rows, PLANNED):
        planned = source.places(np.arange(start, min(start + PLANNED, source.rows))).tolist()
        yield from (planned[i:i + BATCH] for i in range(0, len(planned), BATCH))


def read_ours(folder: str, texts: bool = False) -> Iterator[dict[str, Any]]:
    """One process: uid and latents, or whole rows with their text."""
    source = Source(ENTRY, [Manifest.load(folder)], BUCKET, 0)
    for some in places(source):
        if texts:
            read = source.read(some)
            yield {"uid": [row.uid for row in read], "rows": read}
        else:
            uids, latents, _ = source.latents(some)
            yield {"uid": uids, "latents": latents}


class _Batches:
    """What worker processes make."""

    def __init__(self, folder: str):
        self.source = Source(ENTRY, [Manifest.load(folder)], BUCKET, 0, threads=1)

    def __getitem__(self, some: list[int]) -> dict[str, Any]:
        uids, latents, _ = self.source.latents(some)
        return {"uid": uids, "latents": latents}


def read_ours_by_workers(folder: str, workers: int) -> Iterator[dict[str, Any]]:
    """Batches of 64 from worker processes."""
    data = _Batches(folder)
    return by_workers(data, places(data.source), workers)


def read_sequentially(folder: str) -> dict[str, float]:
    """The limit: the latents' files from front to back into one MiB of memory."""
    warm(folder)
    buffer, size, start = bytearray(1 << 20), 0, time.perf_counter()
    for path in sorted(Path(folder).glob("*[0-9].arrow")):
        with open(path, "rb", buffering=0) as file:
            while read := file.readinto(buffer):
                size += read
    return {"seconds": time.perf_counter() - start, "rows": size / ROW_BYTES}


def order_ours(samples: int) -> dict[str, float]:
    """The order over shards of a GiB, and a global batch at its middle, through the class that the loader uses."""
    shards = tuple(Shard(f"{i}.arrow", f"{i}.text.arrow", None, "web", "pair", BUCKET,
                         min(GIB_ROWS, samples - i * GIB_ROWS), 0, "", "") for i in range(-(-samples // GIB_ROWS)))
    manifest = Manifest("order", shards)
    times = []

    def make() -> None:
        source = Source(ENTRY, [manifest], BUCKET, 0)
        times.append(time.perf_counter())
        source.places(np.arange(samples // 2, samples // 2 + GLOBAL_BATCH))
        times.append(time.perf_counter())

    found = measured(make)
    return {"resume": times[1] - times[0], **found}


def shuffle_quality(samples: int, batches: int = 200) -> list[Row]:
    """Batches of 512 across an epoch, by windows and by one permutation of all rows.

    Shards: how many different ones a batch has. Spread: deviation of the batches' means of a label that all rows of a
    shard share, with deviation 1 over the shards (the worst case: rows of a shard are as alike as can be).
    """
    count = samples // GIB_ROWS
    label = np.random.default_rng(0).standard_normal(count)
    starts = np.linspace(0, count * GIB_ROWS - GLOBAL_BATCH, batches).astype(np.int64)
    windows = Windows(np.full(count, GIB_ROWS), 1)
    table = []
    for name, order in ((f"windows of {WINDOW} shards", windows.places),
                        ("one permutation", lambda p: permute(p, count * GIB_ROWS, 1))):
        shards = [order(start + np.arange(GLOBAL_BATCH)) // GIB_ROWS for start in starts]
        table += [Row(f"shuffle, {name}: shards", float(np.mean([len(np.unique(s)) for s in shards])), "of a batch of 512"),
                  Row(f"shuffle, {name}: spread", float(np.std([label[s].mean() for s in shards])), "of batch means")]
    return table


def call(python: Path | str, *arguments: str) -> dict[str, float]:
    """Run one measurement in a process of its own; its last line is JSON."""
    done = subprocess.run([str(python), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours(measure: str, folder: Path | str, number: int = 0) -> dict[str, float]:
    """One of this file's measurements, in a process of its own."""
    return call(sys.executable, "-m", "benchmarks.loader", "measure", measure, str(folder), str(number))


def measure(name: str, folder: str, number: int) -> dict[str, float]:
    """What `ours` runs; `number` is of rows, workers or samples."""
    if name == "limit":
        return read_sequentially(folder)
    if name == "order":
        return order_ours(number)
    warm(folder)
    total = Manifest.load(folder).rows
    if name == "workers":
        return timed(read_ours_by_workers(folder, number), total)
    return timed(read_ours(folder, texts=name == "texts"), total)


def prepare(options: Options) -> Path:
    """The peers' environment and the data of all formats, where they are not there; the peers' Python."""
    python = options.peers / "bin" / "python"
    if not python.exists():
        venv.create(options.peers, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    if not (options.folder / str(options.count)).exists():
        for peer in PEERS:
            call(python, "benchmarks/_peers.py", "write", peer, f"folder={options.folder / peer}", f"count={options.count}")
        subprocess.run(["rm", "-rf", str(options.folder / "ours")], check=True)
        write_ours(options.folder / "ours", options.count)
        (options.folder / str(options.count)).touch()
    return python


def run(options: Options) -> Report:
    """All readers in turn, round by round."""
    python = prepare(options)
    rates: dict[str, list[float]] = {}

    def note(name: str, found: dict[str, float]) -> None:
        rates.setdefault(name, []).append(found["rows"] / found["seconds"])

    for _ in range(options.rounds):
        note("limit: sequential read", ours("limit", options.folder / "ours"))
        note("ours", ours("latents", options.folder / "ours"))
        note("ours, with text", ours("texts", options.folder / "ours"))
        note("ours, worker processes", ours("workers", options.folder / "ours", options.workers))
        for (peer, name), workers in itertools.product(PEERS.items(), (0, options.workers)):
            found = call(python, "benchmarks/_peers.py", "read", peer, f"folder={options.folder / peer}",
                         f"count={options.count}", f"workers={workers}")
            note(name + (", worker processes" if workers else ""), found)
    rate = {name: median(values) for name, values in rates.items()}
    table = [Row("rows", options.count, f"of {ROW_BYTES} bytes, page cache warm"),
             Row("worker processes", options.workers, "")]
    for name, value in rate.items():
        table += [Row(name, value, "samples/s"), Row(f"{name}: bytes", value * ROW_BYTES / 1e6, "MB/s")]
    alone = max(rate[name] for name in PEERS.values())
    together = max(rate[f"{name}, worker processes"] for name in PEERS.values())
    aims = [Aim("ours / best peer", rate["ours"] / alone, ">=", 3.0),
            Aim("ours / best peer, worker processes", rate["ours, worker processes"] / together, ">=", 3.0),
            Aim("ours / limit", rate["ours"] / rate["limit: sequential read"], ">=", 0.6)]
    more, held = _order(options, python)
    return Report("loader", [*table, *more, *shuffle_quality(options.samples)], [*aims, *held])


def _order(options: Options, python: Path) -> tuple[list[Row], list[Aim]]:
    found = ours("order", options.folder, options.samples)
    table = [Row("order: samples", options.samples, ""), Row("order, ours: build and resume", found["seconds"], "s"),
             Row("order, ours: a batch of 512 at the middle", found["resume"], "s"),
             Row("order, ours: memory", found["bytes"] / 1e6, "MB")]
    for peer in ("mds", "litdata"):
        theirs = call(python, "benchmarks/_peers.py", "order", peer, f"samples={options.samples}")
        table += [Row(f"order, {PEERS[peer]}: build and resume", theirs["seconds"], "s"),
                  Row(f"order, {PEERS[peer]}: memory", theirs["bytes"] / 1e6, "MB")]
    return table, [Aim("order: seconds", found["seconds"], "<", 1.0),
                   Aim("order: MB", found["bytes"] / 1e6, "<", 50.0)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:4], int(sys.argv[4]))))
        os._exit(0)  # Not to wait for a DataLoader's farewell.
    chosen = tyro.cli(Options, description=__doc__)
    run(chosen).write(chosen.json)
