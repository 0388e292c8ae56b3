"""Curation's filter: how fast it decides by headers, against decoding everything and against only reading.

All sides read the same tars of the same pictures (about 120 kB each) in this run, in one process with one thread, in
alternating rounds, after one round that fills the page cache; the median counts.

- ours: `make_facts`, the whole work of a unit: read, hash, probe, texts, and a published Parquet file
- decode everything: webdataset with Pillow's RGB decoder, and the same rule on the decoded picture
- read, no work: the bytes of each tar in blocks of 8 MB
- members, no work: webdataset's tar reader, which hands over each member's bytes

Memory is the peak of a fresh process that does our side for the input once and ten times (other tars each time).

    python -m benchmarks.curate --json FILE
"""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro
import webdataset
from PIL import Image

from benchmarks._report import Aim, Report, Row
from pipelines.curate import make_facts
from pipelines.facts import Limits
from pipelines.sources import plan

TAR_PICTURES = 500
MIN_SIDE = 512


@dataclass(frozen=True)
class Options:
    """json: where the report goes. pictures: in all. rounds: of every side. measure_memory: used by itself."""

    json: str = "build/benchmarks/curate.json"
    pictures: int = 5000
    rounds: int = 3
    measure_memory: str | None = None


def write_source(folder: Path, pictures: int) -> None:
    """Tars of JPEGs, every tenth too small; no two are equal, but there are only 50 different contents."""
    numbers = np.random.default_rng(0)
    contents = []
    for number in range(50):
        size = (480, 640) if number % 10 == 0 else (640, 576)
        coarse = numbers.integers(0, 256, (24, 24, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = numbers.normal(0, 14, smooth.shape)
        buffer = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        contents.append(buffer.getvalue())
    for first in range(0, pictures, TAR_PICTURES):
        with tarfile.open(folder / f"{first // TAR_PICTURES:05d}.tar", "w") as tar:
            for number in range(first, min(first + TAR_PICTURES, pictures)):
                data = contents[number % len(contents)]
                comment = f"{number:012d}".encode()
                data = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
                meta = json.dumps(
                    {"caption": f"picture {number}", "width": 640, "url": "https://example.org/x.jpg"}
                )
                for name, value in (("jpg", data), ("txt", b"picture %d" % number), ("json", meta.encode())):
                    info = tarfile.TarInfo(f"{number:08d}.{name}")
                    info.size = len(value)
                    tar.addfile(info, io.BytesIO(value))


def ours(source: Path, out: Path) -> int:
    """The facts of every tar, published; returns the rows that a decision can be made on."""
    rows = 0
    for shard in plan([f"web={source}"]):
        task = {
            "version": [shard.bytes, shard.version],
            "preset": shard.preset,
            "limits": vars(Limits()),
            "print": "x",
        }
        rows += make_facts({**vars(shard.unit), "out": str(out), **task})["rows"]
    return rows


def decode_everything(source: Path) -> int:
    """The usual filter: decode, look, keep."""
    tars = sorted(str(path) for path in source.glob("*.tar"))
    samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pilrgb")
    return sum(1 for sample in samples if min(sample["jpg"].size) >= MIN_SIDE)


def read_only(source: Path) -> int:
    """Every byte of the tars."""
    total = 0
    for path in sorted(source.glob("*.tar")):
        with path.open("rb", buffering=0) as file:
            while block := file.read(8 << 20):
                total += len(block)
    return total


def members_only(source: Path) -> int:
    """Every member, and no work."""
    tars = sorted(str(path) for path in source.glob("*.tar"))
    return sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False))


def seconds(call: Callable[[], int]) -> float:
    """CPU and waiting time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_memory(source: Path) -> float:
    """MiB that a process takes at most which curates the source."""
    command = [sys.executable, "-m", "benchmarks.curate", "--measure-memory", str(source)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def measure_memory(source: Path) -> None:
    """In a process of its own: print the peak in KiB."""
    with tempfile.TemporaryDirectory() as out:
        ours(source, Path(out))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def run(options: Options) -> Report:
    """Measure all sides on the same tars."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (source := folder / "web").mkdir()
        (tenth := folder / "tenth").mkdir()
        write_source(source, options.pictures)
        tars = sorted(source.glob("*.tar"))
        for path in tars[: max(1, len(tars) // 10)]:
            (tenth / path.name).symlink_to(path)
        sides = {
            "ours": lambda: ours(source, folder / "out"),
            "decode everything": lambda: decode_everything(source),
            "read, no work": lambda: read_only(source),
            "members, no work": lambda: members_only(source),
        }
        times = [{name: seconds(call) for name, call in sides.items()} for _ in range(options.rounds + 1)][1:]
        size = sum(path.stat().st_size for path in tars) / 1e6
        small, large = peak_memory(tenth), peak_memory(source)
    took = {name: median(round_[name] for round_ in times) for name in sides}
    rows = [Row("pictures", options.pictures, ""), Row("tars", size, "MB")]
    rows += [
        Row(f"{name}: pictures a second", options.pictures / value, "1/s") for name, value in took.items()
    ]
    rows += [Row(f"{name}: MB a second", size / value, "MB/s") for name, value in took.items()]
    rows += [
        Row("peak memory, a tenth of the input", small, "MiB"),
        Row("peak memory, all of it", large, "MiB"),
    ]
    aims = [
        Aim("speed, of decoding everything", took["decode everything"] / took["ours"], ">=", 10),
        Aim("speed, of reading the bytes", took["read, no work"] / took["ours"], ">=", 0.8),
        Aim("speed, of reading the members", took["members, no work"] / took["ours"], ">=", 0.8),
        Aim("memory of 10 times the input", large / small, "<=", 1.1),
    ]
    return Report("curate", rows, aims)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    if options.measure_memory:
        measure_memory(Path(options.measure_memory))
    else:
        run(options).write(options.json)
