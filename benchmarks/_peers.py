"""The peers of `benchmarks.loader`, as their documentation says to use them; run by the peers' own Python.

    python benchmarks/_peers.py write|read|order PEER key=value ...      (the last line of output is JSON)
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

SHAPE = (16, 1, 54, 54)  # of a 432x432 picture: 93,312 bytes of fp16
BATCH = 64
TAR_ROWS = 700  # about the size of a shard of the other two


def rows(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """The same uids and latents for every format."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((1024 + 256, *SHAPE)).astype(np.float16)
    for i in range(count):
        uid = hashlib.md5(str(i).encode()).hexdigest()
        yield uid, np.roll(pool[i % 1024], i // 1024, axis=-1)


def import_mds() -> Any:
    """MosaicML Streaming; its picture datasets, not used here, want a torchvision that fits no CPU build of torch."""
    import transformers  # noqa: F401  (looks for torchvision itself, and must not find ours)

    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: types.ModuleType(name) for name in names}
    modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    sys.modules.update(modules)
    import streaming

    return streaming


def write_mds(folder: str, count: int) -> None:
    """Shards of 64 MB, the default."""
    shape = ",".join(map(str, SHAPE))
    with import_mds().MDSWriter(out=folder, columns={"uid": "str", "latents": f"ndarray:float16:{shape}"}) as out:
        for uid, latents in rows(count):
            out.write({"uid": uid, "latents": latents})


def read_mds(folder: str, workers: int) -> Iterator[Any]:
    """Its shuffle is the default, py1e."""
    streaming = import_mds()
    streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    return iter(DataLoader(data, BATCH, num_workers=workers)) if workers else iter(data)


def _one(row: tuple[str, np.ndarray]) -> dict[str, Any]:
    return {"uid": row[0], "latents": torch.from_numpy(row[1].copy())}


def write_litdata(folder: str, count: int) -> None:
    """Chunks of 64 MB, as its documentation recommends."""
    import litdata

    litdata.optimize(_one, list(rows(count)), folder, chunk_bytes="64MB", num_workers=1, start_method="fork")


def read_litdata(folder: str, workers: int) -> Iterator[Any]:
    import litdata

    data = litdata.StreamingDataset(folder, shuffle=True)
    return iter(litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)) if workers else iter(data)


def write_webdataset(folder: str, count: int) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=TAR_ROWS, verbose=0) as out:
        for uid, latents in rows(count):
            out.write({"__key__": uid, "latents.bin": latents.tobytes()})


def _decoded(sample: dict[str, Any]) -> dict[str, Any]:
    latents = np.frombuffer(bytearray(sample["latents.bin"]), np.float16).reshape(SHAPE)
    return {"uid": sample["__key__"], "latents": torch.from_numpy(latents)}


def read_webdataset(folder: str, workers: int) -> Iterator[Any]:
    """Tars in random order and a buffer of 1000 rows."""
    import webdataset

    data = webdataset.WebDataset(sorted(glob.glob(f"{folder}/*.tar")), shardshuffle=100, empty_check=False)
    data = data.shuffle(1000).map(_decoded)
    return iter(DataLoader(data, BATCH, num_workers=workers)) if workers else iter(data)


def order_mds(samples: int) -> dict[str, float]:
    """The order of one epoch for 64 ranks, from its middle: what a node's first worker makes."""
    import_mds()
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    shards = np.full(samples // TAR_ROWS, TAR_ROWS, np.int64)

    def make() -> None:
        ids = get_partitions("relaxed", int(shards.sum()), 64, 8, 8, 4, 8, samples // 2)
        shuffle = get_shuffle("py1e", shards, 64, 0, 0, 262144)
        np.where(ids != -1, shuffle[ids], -1)

    return measured(make)


def order_litdata(samples: int) -> dict[str, float]:
    """The chunks of one epoch for 64 ranks of 4 workers, and one rank's replay to its middle."""
    from litdata.streaming.dataset import _replay_chunks_sampling, _replay_sampling
    from litdata.streaming.item_loader import Interval
    from litdata.streaming.shuffle import FullShuffle
    from litdata.utilities.env import _DistributedEnv

    intervals = [Interval(i, i, i + TAR_ROWS, i + TAR_ROWS) for i in range(0, samples, TAR_ROWS)]
    cache = types.SimpleNamespace(get_chunk_intervals=lambda: intervals, _reader=types.SimpleNamespace())

    def make() -> None:
        order = FullShuffle(cache, 0, True)  # type: ignore[arg-type]
        environment = _DistributedEnv(world_size=64, global_rank=0, num_nodes=1)
        _, workers = order.get_chunks_and_intervals_per_workers(environment, 4, 8, 1)
        done = _replay_sampling(samples // 128, 8, 4)
        _replay_chunks_sampling(dict(enumerate(workers[:4])), done)

    return measured(make)


def measured(make: Callable[[], None]) -> dict[str, float]:
    """Seconds of a call, and bytes of memory that it took beyond what the process had (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # The peak begins anew.
    before, start = _status("VmRSS"), time.perf_counter()
    make()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": _status("VmHWM") - before}


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(name))


def warm(folder: str) -> None:
    """Bring every file of a folder into the page cache."""
    for path in glob.glob(f"{folder}/**", recursive=True):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                while file.read(8 << 20):
                    pass


def timed(samples: Iterator[Any], count: int) -> dict[str, float]:
    """Seconds of all but the first sample (or batch): what starts before it is not reading."""
    seen = _rows(next(samples))
    first, start = seen, time.perf_counter()
    while (sample := next(samples, None)) is not None:  # LitData begins anew where `for` asks for its iterator again.
        seen += _rows(sample)
    seconds = time.perf_counter() - start
    # LitData leaves a remainder out, so that ranks are equal.
    if not 0.98 * count <= seen <= count:
        raise SystemExit(f"read {seen} rows of {count}")
    return {"seconds": seconds, "rows": seen - first}


def _rows(sample: Any) -> int:
    return len(sample["uid"]) if isinstance(sample["uid"], list | tuple) else 1


def main() -> None:
    """The command line; see above."""
    action, peer, *pairs = sys.argv[1:]
    values = dict(pair.split("=", 1) for pair in pairs)
    calls = globals()
    if action == "order":
        print(json.dumps(calls[f"order_{peer}"](int(values["samples"]))))
    elif action == "write":
        shutil.rmtree(values["folder"], ignore_errors=True)
        os.makedirs(values["folder"])
        calls[f"write_{peer}"](values["folder"], int(values["count"]))
        print("{}")
    else:
        warm(values["folder"])
        read = calls[f"read_{peer}"](values["folder"], int(values["workers"]))
        print(json.dumps(timed(read, int(values["count"]))))


if __name__ == "__main__":
    main()
