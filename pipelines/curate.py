"""Curation: from tars to a selection in which every pair is accounted for.

Four steps, each by unit and each published: facts (headers and hashes, one sequential read of the tar), scores (what
pictures, texts and models say, where asked for), groups of duplicates (over all units), selection and ledger (rules).
A step that was done before with the same options is not done again, so a changed threshold re-makes selections
without touching media.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import ledger, sweep
from pipelines.facts import VERSION, Limits, read_facts, write_parquet
from pipelines.groups import Dedup, find_losers
from pipelines.presets import PRESETS
from pipelines.progress import StageProgress
from pipelines.publish import (
    Record,
    Unit,
    collect_leftovers,
    done,
    filesystem,
    fingerprint,
    publish,
    publish_json,
    publish_record,
)
from pipelines.report import Samples, draw_samples, write_report
from pipelines.rows import dataset_manifest, load_selection, read_table
from pipelines.rules import Rules, scores_needed
from pipelines.run import run_tasks
from pipelines.scores import UnitFiles, parse_scorers, score_files, score_stage
from pipelines.select import BASE, base_selection, publish_selection
from pipelines.sources import InputError, InputShard, Part, check_output, plan


@dataclass(frozen=True)
class CurateConfig:
    """What goes in, what is kept and where it goes."""

    source: tuple[str, ...]
    """NAME=PATH or NAME:PRESET=PATH, several times; PATH is a tar, a folder of tars or a pattern, local or s3://."""
    out: str
    """The dataset's folder, local or s3://."""
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)
    score: tuple[str, ...] = ()
    """Scores to store: text, pixels, nsfw, similarity=MODEL, or NAME=MODEL:LABEL; several times."""
    dedup: Dedup = field(default_factory=Dedup)
    against: tuple[str, ...] = ()
    """NAME=PATH of evaluation sets, as sources: pictures that are near copies of theirs are dropped."""
    part: Part = field(default_factory=Part)
    workers: int | None = None
    """At most so many tasks at a time; by default as many as there are CPUs."""
    gpus_per_worker: float = 0
    """GPUs of an actor that holds a scoring model."""


@dataclass(frozen=True)
class Report:
    """What a run decided. `counts`: {source: {account: rows}} as in ledger.count; `sizes`: {side: pictures};
    `sweep`: {score: [(cut-off, rows of the selection that it would keep)]}; `pictures`: those of kept documents, which
    stay or are left out for a reason."""

    counts: dict[str, dict[str, int]]
    hash: str
    units: int
    bytes: int
    seconds: dict[str, float]
    damages: tuple[str, ...]
    sizes: dict[int, int]
    sweep: dict[str, list[tuple[float, int]]]
    pictures: dict[str, int]

    @property
    def total(self) -> dict[str, int]:
        """Accounts over all sources."""
        return ledger.total(self.counts.values())

    @property
    def rows(self) -> int:
        """All rows of all sources."""
        return sum(self.total.values())


def curate(config: CurateConfig) -> Report:
    """Curate in the current Ray session and write facts, scores, selection `base`, ledger, manifests and report.

    Raises InputError for a user's mistake, RunFailed for units that could not be read (the others are published),
    LedgerError if the sums differ.
    """
    check_output(config.out)
    shards = plan(config.source, config.part)
    evaluation = plan(config.against) if config.against else []
    near = config.dedup.near_pictures or bool(evaluation)
    needed = ("pixels",) * near + ("text",) * config.dedup.near_captions
    scorers = parse_scorers((*config.score, *needed))
    for path in collect_leftovers(config.out):
        print(f"removed {path}, left by a writer that was killed")
    publish_json(config.out, "curate.json", config)
    clock = _Clock()
    facts = _facts_stage(config, [*shards, *evaluation])
    _refuse_empty_sources([*shards, *evaluation], facts)
    clock.stop("facts")
    files = _scored(config, scorers, shards, facts)
    for own in files:
        own.check(scores_needed(config.rules))
    forbidden = _scored(config, [scorer for scorer in scorers if scorer.name == "pixels"], evaluation, facts)
    clock.stop("scores")
    losers, pictures = find_losers(files, forbidden, config.rules, config.dedup, config.workers)
    clock.stop("duplicates")
    units = [shard.unit for shard in shards]
    selections = base_selection(
        config.out, units, files, losers, pictures, config.rules, config.workers
    )
    counts = {unit: record["counts"] for unit, record in selections.items()}
    ledger.check_run({unit.id: facts[unit.id]["rows_in"] for unit in units}, counts)
    manifest_hash = _publish_run(config, units, files, selections)
    clock.stop("selection")
    report = _summary(shards, facts, selections, manifest_hash, clock.seconds)
    samples = draw_samples(_samples(selections), config.limits.max_pixels)
    write_report(config.out, report, samples, config)
    return report


def add_scores(config: CurateConfig) -> None:
    """Make `config.score` for the units of a dataset that stands already."""
    scorers = parse_scorers(config.score)
    units = [selected.unit for selected in load_selection(config.out).units]
    facts = done(config.out, "facts", only=[unit.id for unit in units])
    pairs = [(unit, facts[unit.id]) for unit in units]
    score_stage(config.out, scorers, pairs, config.workers, config.gpus_per_worker)
    dataset_manifest(config.out)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, stage: str) -> None:
        """Count the time since the last stop as this stage's."""
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now


def _scored(
    config: CurateConfig, scorers: list[Any], shards: list[InputShard], facts: dict[str, Record]
) -> list[UnitFiles]:
    """Facts and scores of the shards, the scores made where they are missing."""
    units = [(shard.unit, facts[shard.unit.id]) for shard in shards]
    score_stage(config.out, scorers, units, config.workers, config.gpus_per_worker)
    return score_files(config.out, units)


def _facts_stage(config: CurateConfig, shards: list[InputShard]) -> dict[str, Record]:
    """Facts records by unit id, of all shards."""
    ids = [shard.unit.id for shard in shards]
    found = done(config.out, "facts", only=ids)
    tasks = []
    for shard in shards:
        print_ = fingerprint("facts", VERSION, config.limits, shard.preset)
        version = [shard.bytes, shard.version]
        record = found.get(shard.unit.id, {})
        if (record.get("fingerprint"), record.get("version")) != (print_, version):
            task = {"version": version, "preset": shard.preset, "limits": vars(config.limits), "print": print_}
            tasks.append({**vars(shard.unit), "out": config.out, **task})
    current = len(shards) - len(tasks)
    with StageProgress("facts", len(shards), current) as progress:
        run_tasks(make_facts, tasks, config.workers, progress)
    return done(config.out, "facts", only=ids)


def make_facts(task: dict[str, Any]) -> dict[str, Any]:
    """Probe one tar and publish its facts: the work of a Ray task."""
    unit = Unit(**{name: task[name] for name in ("source", "path", "index", "start", "stop")})
    fs, path = filesystem(unit.path)
    with fs.open(path, "rb", block_size=8 << 20) as file:
        table = read_facts(file, unit, Limits(**task["limits"]), PRESETS[task["preset"]])
    relpath = f"facts/{fingerprint(unit.id, task['print'])}.parquet"
    entry = publish(task["out"], relpath, lambda out: write_parquet(out, table))
    damages = table.filter(
        pc.or_kleene(pc.equal(table["kind"], "damage"), pc.equal(table["error"], "tar_cut"))
    )
    record = {
        "unit": unit,
        "fingerprint": task["print"],
        "version": task["version"],
        "files": [entry],
        "rows": len(table),
        "rows_in": len(table),
        "damages": damages["detail"].to_pylist(),
    }
    publish_record(task["out"], "facts", unit.id, record)
    return {"rows": len(table)}


def _refuse_empty_sources(shards: list[InputShard], facts: dict[str, Record]) -> None:
    for source in {shard.unit.source for shard in shards}:
        units = [shard.unit for shard in shards if shard.unit.source == source]
        if not sum(facts[unit.id]["rows"] for unit in units):
            listed = ", ".join(unit.path for unit in units[:3])
            raise InputError(f"source {source} is empty: no samples in {listed}; check its --source")


def _publish_run(
    config: CurateConfig, units: list[Unit], files: list[UnitFiles], selections: dict[str, Record]
) -> str:
    """The ledger in one file, the selection's manifest and the dataset's; returns the dataset's hash."""
    parts = [selections[unit.id]["files"][1]["path"] for unit in units]

    def ledgers() -> Iterator[pa.Table]:
        return (read_table(config.out, part) for part in parts)

    publish(config.out, "ledger.parquet", lambda file: ledger.merge(file, ledgers()))
    publish_selection(config.out, BASE, config.rules, units, files, selections)
    return dataset_manifest(config.out)["hash"]


def _samples(selections: dict[str, Record]) -> Samples:
    merged = Samples()
    for record in selections.values():
        merged.add(record["samples"])
    return merged


def _summary(
    shards: list[InputShard],
    facts: dict[str, Record],
    selections: dict[str, Record],
    manifest_hash: str,
    seconds: dict[str, float],
) -> Report:
    by_source: dict[str, list[dict[str, int]]] = {}
    damages = []
    for shard in shards:
        by_source.setdefault(shard.unit.source, []).append(selections[shard.unit.id]["counts"])
        name = os.path.basename(shard.unit.path)
        damages += [f"{shard.unit.source}/{name}: {detail}" for detail in facts[shard.unit.id]["damages"]]
    counts = {source: ledger.total(parts) for source, parts in by_source.items()}
    size = sum(shard.bytes for shard in shards)
    by_side = ledger.total(record["sizes"] for record in selections.values())
    sizes = {int(side): by_side[side] for side in sorted(by_side, key=int)}
    histograms = sweep.merge([record["histograms"] for record in selections.values()])
    swept = {score: sweep.kept_by_cut(score, found) for score, found in histograms.items()}
    pictures = ledger.total(record["pictures"] for record in selections.values())
    return Report(counts, manifest_hash, len(shards), size, seconds, tuple(damages), sizes, swept, pictures)
