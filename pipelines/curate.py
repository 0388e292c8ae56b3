"""Curation: from tars to a selection in which every pair is accounted for.

Three steps, each by unit and each published: facts (headers and hashes, one sequential read of the tar), groups of
exact duplicates (over all facts), selection and ledger (rules). A step that was done before with the same options is
not done again, so a changed threshold re-makes selections without touching media.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import dedup, ledger, rules
from pipelines.facts import VERSION, Limits, read_facts, write_parquet
from pipelines.progress import StageProgress
from pipelines.publish import (
    IO_THREADS,
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
from pipelines.rows import SelectedUnit, dataset_manifest, read_table
from pipelines.rules import Rules
from pipelines.run import run_tasks
from pipelines.sources import InputError, InputShard, check_output, plan

SELECTION_VERSION = 1  # goes up when the same facts give another selection


@dataclass(frozen=True)
class CurateConfig:
    """What goes in, what is kept and where it goes."""

    source: tuple[str, ...]
    """NAME=PATH, several times; PATH is a tar, a folder of tars or a pattern, local or s3://."""
    out: str
    """The dataset's folder, local or s3://."""
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)
    workers: int | None = None
    """At most so many tasks at a time; by default as many as there are CPUs."""


@dataclass(frozen=True)
class Report:
    """What a run decided. `counts`: {source: {account: rows}} as in ledger.count; `sizes`: {side: pictures}."""

    counts: dict[str, dict[str, int]]
    hash: str
    units: int
    bytes: int
    seconds: dict[str, float]
    damages: tuple[str, ...]
    sizes: dict[int, int]

    @property
    def total(self) -> dict[str, int]:
        """Accounts over all sources."""
        return ledger.total(self.counts.values())

    @property
    def rows(self) -> int:
        """All rows of all sources."""
        return sum(self.total.values())


def curate(config: CurateConfig) -> Report:
    """Curate in the current Ray session and write facts, selection `base`, ledger, manifests and report.

    Raises InputError for a user's mistake, RunFailed for units that could not be read (the others are published),
    LedgerError if the sums differ.
    """
    check_output(config.out)
    shards = plan(config.source)
    for path in collect_leftovers(config.out):
        print(f"removed {path}, left by a writer that was killed")
    publish_json(config.out, "curate.json", config)
    seconds = {}
    started = time.monotonic()
    facts = _facts_stage(config, shards)
    seconds["facts"] = time.monotonic() - started
    _refuse_empty_sources(shards, facts)
    started = time.monotonic()
    losers = _groups(config, shards, facts)
    seconds["duplicates"] = time.monotonic() - started
    started = time.monotonic()
    selections = _selection_stage(config, shards, facts, losers)
    counts = {unit: record["counts"] for unit, record in selections.items()}
    ledger.check_run({unit: record["rows_in"] for unit, record in facts.items()}, counts)
    manifest_hash = _publish_run(config, shards, facts, selections)
    seconds["selection"] = time.monotonic() - started
    report = _summary(shards, facts, selections, manifest_hash, seconds)
    samples = draw_samples(_samples(selections), config.limits.max_pixels)
    write_report(config.out, report, samples, config)
    return report


def _facts_stage(config: CurateConfig, shards: list[InputShard]) -> dict[str, Record]:
    """Facts records by unit id, of all shards."""
    print_ = fingerprint("facts", VERSION, config.limits)
    ids = [shard.unit.id for shard in shards]
    found = done(config.out, "facts", print_, only=ids)
    current = {s.unit.id for s in shards if found.get(s.unit.id, {}).get("version") == [s.bytes, s.version]}
    limits = vars(config.limits)
    tasks = [
        {
            **vars(s.unit),
            "version": [s.bytes, s.version],
            "out": config.out,
            "limits": limits,
            "print": print_,
        }
        for s in shards
        if s.unit.id not in current
    ]
    with StageProgress("facts", len(shards), len(current)) as progress:
        run_tasks(make_facts, tasks, config.workers, progress)
    return done(config.out, "facts", print_, only=ids)


def make_facts(task: dict[str, Any]) -> dict[str, Any]:
    """Probe one tar and publish its facts: the work of a Ray task."""
    unit = Unit(**{name: task[name] for name in ("source", "path", "index", "start", "stop")})
    fs, path = filesystem(unit.path)
    with fs.open(path, "rb", block_size=8 << 20) as file:
        table = read_facts(file, unit, Limits(**task["limits"]))
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


def _groups(
    config: CurateConfig, shards: list[InputShard], facts: dict[str, Record]
) -> dict[int, dict[int, str | None]]:
    """{number of unit: {row: uid of the kept duplicate, or None for a repeated key}}."""
    count = sum(record["rows"] for record in facts.values())
    files = [facts[shard.unit.id]["files"][0]["path"] for shard in shards]

    def uids(low: str, high: str) -> pa.Table:
        return _gather(config, files, ["uid", "row"], lambda table: _between(table, "uid", low, high))

    repeats = pa.concat_tables(dedup.repeated(part) for part in dedup.in_buckets(count, uids))
    losers: dict[int, dict[int, str | None]] = {}
    for unit, row in zip(repeats["unit"].to_pylist(), repeats["row"].to_pylist(), strict=True):
        losers.setdefault(unit, {})[row] = None

    def candidates(low: str, high: str) -> pa.Table:
        columns = ["uid", "row", "same", "error", *rules.COLUMNS]
        table = _gather(config, files, columns, lambda table: _candidates(table, config.rules, low, high))
        # A repeated key is out already: it must not win a group.
        return table.join(repeats.select(["unit", "row"]), ["unit", "row"], join_type="left anti")

    for part in dedup.in_buckets(count, candidates):
        found = dedup.duplicates(part)
        columns = (found[name].to_pylist() for name in ("unit", "row", "duplicate_of"))
        for unit, row, kept in zip(*columns, strict=True):
            losers.setdefault(unit, {})[row] = kept
    return losers


def _gather(config: CurateConfig, files: list[str], columns: list[str], pick: Any) -> pa.Table:
    """`pick` of some columns of all facts files, with the number of the unit."""

    def read(number: int) -> pa.Table:
        table = pick(read_table(config.out, files[number], columns))
        return table.append_column("unit", pa.array([number] * len(table), pa.int32()))

    with ThreadPoolExecutor(IO_THREADS) as pool:
        return pa.concat_tables(pool.map(read, range(len(files))))


def _between(table: pa.Table, column: str, low: str, high: str) -> pa.Table:
    values = table[column]
    return table.filter(pc.and_(pc.greater_equal(values, low), pc.less(values, high)))


def _candidates(table: pa.Table, thresholds: Rules, low: str, high: str) -> pa.Table:
    """(uid, row, same, pixels) of the rows that the rules keep."""
    kept = pc.and_(pc.is_null(table["error"]), pc.is_null(rules.reasons(table, thresholds)))
    table = _between(table.filter(kept), "same", low, high)
    pixels = pc.multiply(pc.cast(table["width"], pa.int64()), pc.cast(table["height"], pa.int64()))
    return table.select(["uid", "row", "same"]).append_column("pixels", pixels)


def _selection_stage(
    config: CurateConfig,
    shards: list[InputShard],
    facts: dict[str, Record],
    losers: dict[int, dict[int, str | None]],
) -> dict[str, Record]:
    """Selection records by unit id."""
    tasks = []
    for number, shard in enumerate(shards):
        entry = facts[shard.unit.id]["files"][0]
        lost = sorted(losers.get(number, {}).items())
        print_ = fingerprint("selection", SELECTION_VERSION, config.rules, entry["xxh3"], lost)
        tasks.append({"unit": vars(shard.unit), "facts": entry["path"], "lost": lost, "print": print_})
    ids = [shard.unit.id for shard in shards]
    found = done(config.out, "selections/base", only=ids)
    pending = [
        {**task, "out": config.out, "rules": vars(config.rules)}
        for task, unit_id in zip(tasks, ids, strict=True)
        if found.get(unit_id, {}).get("fingerprint") != task["print"]
    ]
    with StageProgress("selection", len(shards), len(shards) - len(pending)) as progress:
        run_tasks(make_selection, pending, config.workers, progress)
    return done(config.out, "selections/base", only=ids)


def make_selection(task: dict[str, Any]) -> dict[str, Any]:
    """Settle the account of one unit and publish its selection and ledger: the work of a Ray task."""
    unit = Unit(**task["unit"])
    facts = read_table(task["out"], task["facts"])
    account = ledger.settle(facts, Rules(**task["rules"]), dict(task["lost"]))
    ledger.check_unit(facts, account)
    kept = account.filter(pc.equal(account["outcome"], "kept")).select(["uid", "unit", "row"])
    name = fingerprint(unit.id, task["print"])
    files = [
        publish(task["out"], f"selections/base/{name}.parquet", lambda out: write_parquet(out, kept)),
        publish(task["out"], f"ledger/{name}.parquet", lambda out: write_parquet(out, account)),
    ]
    record = {
        "unit": unit,
        "fingerprint": task["print"],
        "files": files,
        "rows": len(kept),
        "counts": ledger.count(account),
        "samples": Samples.of(facts, account).entries,
        "sizes": _sizes(facts),
    }
    publish_record(task["out"], "selections/base", unit.id, record)
    return {"rows": len(facts)}


def _sizes(facts: pa.Table) -> dict[str, int]:
    """How many pictures have their shorter side in [n, n + 128)."""
    side = pc.drop_null(pc.min_element_wise(facts["width"], facts["height"], skip_nulls=False))
    bins = pc.value_counts(pc.multiply(pc.divide(side, 128), 128))
    return {
        str(item["values"]): item["counts"] for item in sorted(bins.to_pylist(), key=lambda i: i["values"])
    }


def _publish_run(
    config: CurateConfig, shards: list[InputShard], facts: dict[str, Record], selections: dict[str, Record]
) -> str:
    """The ledger in one file, the selection's manifest and the dataset's; returns the dataset's hash."""
    parts = [selections[shard.unit.id]["files"][1]["path"] for shard in shards]

    def ledgers() -> Iterator[pa.Table]:
        return (read_table(config.out, part) for part in parts)

    publish(config.out, "ledger.parquet", lambda file: ledger.merge(file, ledgers()))
    units = []
    for shard in shards:
        record = selections[shard.unit.id]
        chosen = record["files"][0]
        fact_path = facts[shard.unit.id]["files"][0]["path"]
        units.append(SelectedUnit(shard.unit, fact_path, chosen["path"], record["rows"], chosen["xxh3"]))
    manifest = {
        "name": "base",
        "rules": config.rules,
        "units": units,
        "rows": sum(unit.rows for unit in units),
    }
    publish_json(config.out, "selections/base/manifest.json", {**manifest, "hash": fingerprint(manifest)})
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
    return Report(counts, manifest_hash, len(shards), size, seconds, tuple(damages), sizes)
