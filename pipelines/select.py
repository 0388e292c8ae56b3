"""Selections: lists of rows made from stored facts and scores. `base` has the run's ledger; others are parts of it."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import facts, ledger, sweep
from pipelines.document_pictures import with_errors
from pipelines.facts import write_parquet
from pipelines.groups import Losers, LostPictures
from pipelines.ledger import LedgerError
from pipelines.progress import StageProgress
from pipelines.publish import Record, Unit, done, fingerprint, publish, publish_json, publish_record
from pipelines.report import Samples
from pipelines.rows import SelectedUnit, dataset_manifest, load_selection, read_table
from pipelines.rules import SCORES, Rules, picture_reasons, scores_needed
from pipelines.run import run_tasks
from pipelines.scores import UnitFiles, score_files
from pipelines.sources import InputError

VERSION = 4  # goes up when the same facts and scores give another selection
BASE = "base"
# What stands beside uid, unit and row: of a document's pictures, in order, why each is left out, or null.
PICTURES = pa.list_(pa.struct([("number", pa.int32()), ("reason", pa.string())]))


def base_selection(
    out: str,
    units: list[Unit],
    files: list[UnitFiles],
    losers: Losers,
    pictures: LostPictures,
    rules: Rules,
    workers: int | None,
) -> dict[str, Record]:
    """Settle every row's account by unit, and return the selection's records by unit id."""
    tasks = []
    for number, (unit, own) in enumerate(zip(units, files, strict=True)):
        lost = sorted(losers.get(number, {}).items())
        more: dict[str, Any] = {"lost": lost}
        if number in pictures:  # as lists, because JSON has no numbers as keys
            more["lost_pictures"] = [[row, sorted(why.items())] for row, why in sorted(pictures[number].items())]
        tasks.append(_task(BASE, unit, own, rules, more, list(more.values())))
    return _stage(out, BASE, units, tasks, make_base, workers)


def named_selection(out: str, name: str, rules: Rules, workers: int | None = None) -> dict[str, Any]:
    """Make the selection `name` of the rows of `base` that `rules` keep; publish its manifest and report.

    Returns the report: {"name", "hash", "rows", "counts", "sweep"}. Touches no media. InputError for a missing score.
    """
    base = load_selection(out)
    units = [selected.unit for selected in base.units]
    records = done(out, "facts", only=[unit.id for unit in units])
    files = score_files(out, [(unit, records[unit.id]) for unit in units])
    for own in files:
        own.check(scores_needed(rules))
    tasks = []
    for selected, own in zip(base.units, files, strict=True):
        more = {"of": selected.selection, "name": name}
        tasks.append(_task(name, selected.unit, own, rules, more, selected.hash))
    made = _stage(out, name, units, tasks, make_part, workers)
    counts = ledger.total(record["counts"] for record in made.values())
    if sum(counts.values()) != sum(selected.rows for selected in base.units):
        raise LedgerError(f"selection {name}: {counts} are not the rows of {BASE}")
    manifest = publish_selection(out, name, rules, units, files, made)
    dataset_manifest(out)
    histograms = sweep.merge([record["histograms"] for record in made.values()])
    report = {"name": name, "hash": manifest["hash"], "rows": manifest["rows"], "counts": counts,
              "sweep": {score: sweep.kept_by_cut(score, found) for score, found in histograms.items()}}  # fmt: skip
    publish_json(out, f"selections/{name}/report.json", report)
    return report


def check_name(name: str) -> None:
    """InputError unless `name` can be a new selection's."""
    if name == BASE:
        raise InputError(f"--select {BASE} needs --source: the other selections are parts of it")
    if not name.replace("-", "_").isidentifier():
        raise InputError(f"--select {name}: a selection's name is letters, digits, - and _")


def _task(
    name: str, unit: Unit, own: UnitFiles, rules: Rules, more: dict[str, Any], made_from: Any
) -> dict[str, Any]:
    state = [entry["xxh3"] for entry in (own.facts, *own.scores)]
    print_ = fingerprint("selection", VERSION, name, rules, state, made_from)
    return {
        "unit": vars(unit),
        "path": unit.path,
        "files": vars(own),
        "rules": vars(rules),
        "print": print_,
        **more,
    }


def _stage(
    out: str, name: str, units: list[Unit], tasks: list[dict[str, Any]], make: Any, workers: int | None
) -> dict[str, Record]:
    family, ids = f"selections/{name}", [unit.id for unit in units]
    found = done(out, family, only=ids)
    pending = [
        task
        for task, unit_id in zip(tasks, ids, strict=True)
        if found.get(unit_id, {}).get("fingerprint") != task["print"]
    ]
    with StageProgress(f"selection {name}", len(units), len(units) - len(pending)) as progress:
        run_tasks(make, pending, workers, progress)
    return done(out, family, only=ids)


def make_base(task: dict[str, Any]) -> dict[str, Any]:
    """Settle the account of one unit and publish its selection and ledger: the work of a Ray task."""
    files = UnitFiles(**task["files"])
    lost_pictures = {row: dict(why) for row, why in task.get("lost_pictures", [])}
    rows = with_errors(_rows(files), lost_pictures)
    losers = {row: (why, stays) for row, (why, stays) in task["lost"]}
    account = ledger.settle(rows, _rules(task), losers)
    ledger.check_unit(rows, account)
    more = {"samples": Samples.of(rows, account).entries, "sizes": _sizes(rows)}
    return _publish(BASE, task, rows, account, more)


def make_part(task: dict[str, Any]) -> dict[str, Any]:
    """The part of a unit's base rows that other rules keep: the work of a Ray task."""
    files = UnitFiles(**task["files"])
    base = read_table(files.out, task["of"], ["row", "pictures"])
    rows = with_errors(_rows(files).take(base["row"]), _lost_before(base["pictures"].to_pylist()))
    account = ledger.settle(rows, _rules(task), {})
    return _publish(task["name"], task, rows, account, {})


def _lost_before(pictures: list[list[dict[str, Any]] | None]) -> dict[int, dict[int, str]]:
    """What `base` left out of its documents: it stays out, for it was not held to the evaluation sets."""
    lost = [{entry["number"]: entry["reason"] for entry in own or [] if entry["reason"]} for own in pictures]
    return {row: reasons for row, reasons in enumerate(lost) if reasons}


def _rows(files: UnitFiles) -> pa.Table:
    """Facts, and the scores that rules look at."""
    columns = files.columns
    return files.read(
        [
            *facts.SCHEMA.names,
            *(name for name in SCORES if name in columns and name not in facts.SCHEMA.names),
        ]
    )


def _rules(task: dict[str, Any]) -> Rules:
    lists = {name: tuple(value) for name, value in task["rules"].items() if isinstance(value, list)}
    return Rules(**{**task["rules"], **lists})


def _publish(
    name: str, task: dict[str, Any], rows: pa.Table, account: pa.Table, more: dict[str, Any]
) -> dict[str, Any]:
    unit, out = Unit(**task["unit"]), task["files"]["out"]
    keep = pc.equal(account["outcome"], "kept")
    pictures = picture_reasons(rows.filter(keep), _rules(task))
    lists = [[{"number": n, "reason": why} for n, why in own.items()] or None for own in pictures]
    kept = account.filter(keep).select(["uid", "unit", "row"])
    kept = kept.append_column("pictures", pa.array(lists, PICTURES))
    file = fingerprint(unit.id, task["print"])
    book = "ledger" if name == BASE else f"selections/{name}/ledger"
    record = {
        "unit": unit,
        "fingerprint": task["print"],
        "files": [
            publish(out, f"selections/{name}/{file}.parquet", lambda sink: write_parquet(sink, kept)),
            publish(out, f"{book}/{file}.parquet", lambda sink: write_parquet(sink, account)),
        ],
        "rows": len(kept),
        "counts": ledger.count(account),
        "pictures": dict(sorted(Counter(why or "stays" for own in pictures for why in own.values()).items())),
        "histograms": sweep.histograms(rows.filter(keep)),
        **more,
    }
    publish_record(out, f"selections/{name}", unit.id, record)
    return {"rows": len(rows)}


def _sizes(rows: pa.Table) -> dict[str, int]:
    """How many pictures have their shorter side in [n, n + 128)."""
    side = pc.drop_null(pc.min_element_wise(rows["width"], rows["height"], skip_nulls=False))
    bins = pc.value_counts(pc.multiply(pc.divide(side, 128), 128))
    return {
        str(item["values"]): item["counts"] for item in sorted(bins.to_pylist(), key=lambda i: i["values"])
    }


def publish_selection(
    out: str, name: str, rules: Rules, units: list[Unit], files: list[UnitFiles], made: dict[str, Record]
) -> dict[str, Any]:
    """Write and return the manifest of a selection: its units in order, with their files."""
    chosen = []
    for unit, own in zip(units, files, strict=True):
        record = made[unit.id]
        entry = record["files"][0]
        chosen.append(SelectedUnit(unit, own.facts["path"], entry["path"], record["rows"], entry["xxh3"]))
    manifest = {"name": name, "rules": rules, "units": chosen, "rows": sum(unit.rows for unit in chosen)}
    manifest["hash"] = fingerprint(manifest)
    publish_json(out, f"selections/{name}/manifest.json", manifest)
    return manifest
