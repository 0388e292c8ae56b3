"""Encoding: the selected pictures become latents in Arrow shards, with texts and teacher's pictures.

Units go to actors that hold the VAE. A unit whose latents were made before, of the same rows by the same VAE,
is not encoded again; new captions rewrite its text file only.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipelines import ledger
from pipelines.actors import run_actors
from pipelines.decoding import FRAMES
from pipelines.latents import LatentEncoder, Options
from pipelines.progress import StageProgress
from pipelines.publish import Record, collect_leftovers, done, fingerprint, publish, publish_json
from pipelines.rows import Selection, dataset_manifest, families, load_selection, read_table
from pipelines.sources import InputError
from showo2.flow import PATCH
from showo2.shards import Manifest, Shard
from showo2.vae import SPATIAL, WanVAE

_CPU_BATCH_PIXELS = 1 << 18  # 64 pictures of 64x64, one of 432x432
_GPU_BATCH_PIXELS = 1 << 22


@dataclass(frozen=True)
class EncodeConfig:
    """Which dataset, which VAE, and how large."""

    data: str
    """The dataset's folder, as written by jobs.curate; local or s3://."""
    vae: str = "tiny:vae"
    """tiny:vae, a diffusers folder, the released Wan2.1_VAE.pth or a Hub id."""
    size: int = 64
    """Side of the square crop, pixels; the paper's is 432."""
    width: int | None = None
    """Width of the crop where it is not square: --size 480 --width 832 for the paper's 480p clips."""
    clips: bool = False
    """Encode the videos instead of the pictures: 17 frames of a random window of 2 s of each."""
    draw: int = 0
    """Number of the clip of each video: another one is another window, in a folder of its own."""
    teacher: bool = True
    """Keep the crop as a JPEG beside the latents, for the SigLIP of distillation."""
    teacher_size: int | None = None
    """Side of that JPEG; by default the same as `size`."""
    batch: int | None = None
    """Pictures a call of the VAE; by default what fits 2^18 pixels on a CPU, 2^22 on a GPU."""
    audit: int = 4
    """Pictures of each unit that are decoded again and compared with their source."""
    min_psnr: float = 15.0
    """dB that they must reach on average; below it the run stops."""
    workers: int | None = None
    """Actors, each with one copy of the VAE; by default one a CPU, or a GPU. 0: this process, without Ray."""
    gpus_per_worker: float = 0

    @property
    def options(self) -> Options:
        """What a worker needs to know."""
        teacher = (self.teacher_size or self.size) if self.teacher and not self.clips else 0
        width = self.width or self.size
        pixels = _GPU_BATCH_PIXELS if self.gpus_per_worker else _CPU_BATCH_PIXELS
        batch = self.batch or max(1, pixels // (self.size * width * (FRAMES if self.clips else 1)))
        return Options(self.size, teacher, batch, self.audit, self.min_psnr, width, self.clips, self.draw)


@dataclass(frozen=True)
class EncodeReport:
    """What a run ended with, earlier runs' units included.

    rows, shards: in the manifest, of which `hash` is the hash. bytes: of latents. failed: rows by class.
    psnr: dB of the audited pictures, mean and worst. mean, std: of all latents (about 0 and 1 for pictures
    that the VAE knows). fresh: units that this run made.
    """

    rows: int
    shards: int
    bytes: int
    failed: dict[str, int]
    hash: str
    psnr: tuple[float, float] | None
    mean: float
    std: float
    seconds: float
    fresh: int


def check(config: EncodeConfig) -> None:
    """Raise InputError for a user's mistake that shows without Ray."""
    step = SPATIAL * PATCH
    for name in ("size", "width"):
        side = getattr(config, name)
        if side is not None and (side < step or side % step):
            raise InputError(f"--{name} {side}: need a multiple of {step}, for example 64 or 432")
    if config.draw and not config.clips:
        raise InputError(f"--draw {config.draw} is of clips: add --clips")
    for name in ("teacher_size", "batch"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: need 1 or more")
    load_selection(config.data)


def encode(config: EncodeConfig) -> EncodeReport:
    """Encode the base selection in the current Ray session; write shards, manifests, ledger and report.

    Raises InputError for a user's mistake, RunFailed for units that could not be read (the others are
    published), AuditFailed for latents that do not decode to their pictures, LedgerError if rows are without
    account.
    """
    check(config)
    started = time.monotonic()
    selection = load_selection(config.data)
    vae = WanVAE.from_pretrained(config.vae)
    for path in collect_leftovers(config.data):
        print(f"removed {path}, left by a writer that was killed")
    publish_json(config.data, "encode.json", config)
    records, fresh = _latents_stage(config, selection, vae.weights_hash)
    _check_sums(selection, records)
    manifest = compile_shards(config.data, selection)
    publish_ledger(config.data, selection)
    dataset_manifest(config.data)
    report = _summary(records, manifest, time.monotonic() - started, fresh)
    publish_json(config.data, "latents/report.json", report)
    return report


def _latents_stage(config: EncodeConfig, selection: Selection, vae: str) -> tuple[dict[str, Record], int]:
    """Latents records by unit id, of all units of the selection, and how many units were made."""
    print_ = config.options.fingerprint(vae)
    ids = [unit.unit.id for unit in selection.units]
    captions = done(config.data, "captions", only=ids)
    tasks = []
    for unit in selection.units:
        record = captions.get(unit.unit.id)
        told = record["files"][0]["xxh3"] if record and record["selection"] == unit.hash else "sources"
        latents = fingerprint(print_, unit.hash)
        tasks.append(
            {
                "path": unit.unit.path,
                "selected": asdict(unit),
                "latents": latents,
                "captions": told,
                "print": fingerprint(latents, told),
            }
        )
    name = config.options.family
    found = done(config.data, name, only=ids)
    pending = [
        t for t, key in zip(tasks, ids, strict=True) if found.get(key, {}).get("fingerprint") != t["print"]
    ]
    arguments = {
        "vae": _everywhere(config.vae),
        "data": _everywhere(config.data),
        "options": asdict(config.options),
        "gpu": config.gpus_per_worker > 0,
    }
    with StageProgress("latents", len(ids), len(ids) - len(pending)) as progress:
        workers = _workers(config.gpus_per_worker) if config.workers is None else config.workers
        run_actors(LatentEncoder, arguments, pending, workers, progress, num_gpus=config.gpus_per_worker)
    return done(config.data, name, only=ids), len(pending)


def _everywhere(path: str) -> str:
    """Workers have another working directory: local paths become absolute."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _workers(gpus: float) -> int:
    resources: dict[str, Any] = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)))


def _check_sums(selection: Selection, records: dict[str, Record]) -> None:
    for unit in selection.units:
        record = records[unit.unit.id]
        if record["rows"] + len(record["failed"]) != record["rows_in"]:
            raise ledger.LedgerError(
                f"{unit.unit.path}: {record['rows_in']} rows for this bucket, {record['rows']} encoded, "
                f"{len(record['failed'])} failed"
            )


def compile_shards(root: str, selection: Selection) -> Manifest:
    """Write `latents/manifest.json`: the shards of all buckets, from the records of the selection's units."""
    ids = [unit.unit.id for unit in selection.units]
    shards: dict[str, Shard] = {}  # by path: several sizes share their texts
    prints = {}
    for name in families(root, "latents"):
        found = done(root, name, only=ids)
        shards |= {entry["path"]: _shard(entry) for record in found.values() for entry in record["shards"]}
        prints[name] = fingerprint(sorted(record["fingerprint"] for record in found.values()))
    manifest = Manifest(selection.name, tuple(shards[path] for path in sorted(shards)), prints)
    publish(root, "latents/manifest.json", manifest.to_json())
    return manifest


def _shard(entry: Record) -> Shard:
    """Paths become relative to the manifest's folder, `latents`."""
    paths = {
        name: entry[name] and entry[name].removeprefix("latents/")
        for name in ("path", "text_path", "teacher_path")
    }
    return Shard(**{**entry, **paths, "bucket": tuple(entry["bucket"])})


def publish_ledger(root: str, selection: Selection) -> None:
    """Write `ledger.parquet` anew: rows that curation kept and no bucket could encode are failed."""
    ids = [unit.unit.id for unit in selection.units]
    selected = done(root, "selections/base", only=ids)
    latents = [done(root, name, only=ids) for name in families(root, "latents")]

    def parts() -> Iterator[pa.Table]:
        for unit in ids:
            part = read_table(root, selected[unit]["files"][1]["path"])
            failed = [records[unit]["failed"] for records in latents if unit in records]
            yield ledger.fail(part, {uid: tuple(why) for some in failed for uid, why in some.items()})

    publish(root, "ledger.parquet", lambda file: ledger.merge(file, parts()))


def _summary(records: dict[str, Record], manifest: Manifest, seconds: float, fresh: int) -> EncodeReport:
    failed = Counter(reason for record in records.values() for reason, _ in record["failed"].values())
    psnr = [value for record in records.values() for value in record["audit"]["psnr"]]
    moments = np.array([m for record in records.values() for m in record["audit"]["moments"]]).reshape(-1, 3)
    mean = std = 0.0
    if len(moments):
        weights, means, stds = moments.T
        mean = float(np.average(means, weights=weights))
        std = float(np.sqrt(np.average(stds**2 + (means - mean) ** 2, weights=weights)))
    worst = (sum(psnr) / len(psnr), min(psnr)) if psnr else None
    size = sum(shard.bytes for shard in manifest.shards)
    return EncodeReport(
        manifest.rows,
        len(manifest.shards),
        size,
        dict(sorted(failed.items())),
        manifest.hash,
        worst,
        mean,
        std,
        seconds,
        fresh,
    )
