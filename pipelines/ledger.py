"""The ledger: every row of every source ends in exactly one of kept, dropped, failed, duplicate."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.documents import describe_losses
from pipelines.facts import uid_of
from pipelines.rules import Rules, picture_reasons, reasons

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("source", pa.string()),
        ("unit", pa.string()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("tar", pa.string()),
        ("outcome", pa.string()),  # kept | dropped | failed | duplicate
        ("reason", pa.string()),  # of dropped: the rule; of failed: the class of error
        ("duplicate_of", pa.string()),  # uid of the row that is kept instead
        ("detail", pa.string()),
    ]
)
# Why a row gives way to another: see groups.
REPEATED, SAME, NEAR, CAPTION, EVALUATION = "repeated_key", "same", "near", "repeated_caption", "evaluation_set"
OUTCOMES = ("kept", "dropped", "failed", "duplicate")


class LedgerError(RuntimeError):
    """The sums do not close: rows were lost or counted twice. Nothing that depends on them is published."""


def settle(rows: pa.Table, rules: Rules, losers: dict[int, tuple[str, str | None]]) -> pa.Table:
    """The ledger of one unit, row by row as in `rows` (facts, with the scores that the rules look at).

    `losers`: row -> (why, uid of what stays), as in groups. A row whose key stands in an earlier tar already cannot
    have its key's uid, so it is accounted under one of its own.
    """
    dropped = reasons(rows, rules).to_pylist()
    losses = [describe_losses(pictures) for pictures in picture_reasons(rows, rules)]
    errors, details = rows["error"].to_pylist(), rows["detail"].to_pylist()
    uids = rows["uid"].to_pylist()
    columns: dict[str, list[Any]] = {name: [] for name in ("outcome", "reason", "duplicate_of", "detail")}
    for row, (error, reason, detail) in enumerate(zip(errors, dropped, details, strict=True)):
        why, stays = losers.get(row, (None, None))
        values: tuple[str, str | None, str | None, str | None]
        if why == REPEATED:
            source, key = rows["source"][row].as_py(), rows["key"][row].as_py()
            uids[row] = uid_of(source, f"{key}\0{rows['unit'][row].as_py()}")
            values = ("failed", REPEATED, None, f"{key} stands in an earlier tar of source {source}")
        elif error is not None:
            values = ("failed", error, None, detail)
        elif reason is not None:
            values = ("dropped", reason, None, losses[row])
        elif why in (SAME, NEAR):
            values = ("duplicate", None, stays, None if why == SAME else "a near copy")
        elif why is not None:
            values = ("dropped", why, None, f"as {stays}")
        else:
            values = ("kept", None, None, losses[row])
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    given = {name: rows[name] for name in ("source", "unit", "row", "key", "tar")}
    return pa.table({"uid": uids, **given, **columns}, SCHEMA)


def fail(ledger: pa.Table, failures: dict[str, tuple[str, str]]) -> pa.Table:
    """`ledger` with kept rows turned into failed ones: {uid: (class, detail)}, found by a stage after curation."""
    rows = ledger.to_pylist()
    for row in rows:
        if row["uid"] in failures:
            row["outcome"] = "failed"
            row["reason"], row["detail"] = failures[row["uid"]]
    return pa.Table.from_pylist(rows, SCHEMA) if failures else ledger


def count(ledger: pa.Table) -> dict[str, int]:
    """Rows by account: kept, duplicate, dropped:REASON, failed:CLASS."""
    pairs = zip(ledger["outcome"].to_pylist(), ledger["reason"].to_pylist(), strict=True)
    return dict(sorted(Counter(f"{o}:{r}" if r else o for o, r in pairs).items()))


def check_unit(facts: pa.Table, ledger: pa.Table) -> None:
    """Raise LedgerError unless each row of `facts` has exactly one account."""
    name = facts["tar"][0].as_py() if len(facts) else "an empty unit"
    if len(facts) != len(ledger) or sum(count(ledger).values()) != len(facts):
        raise LedgerError(f"{name}: {len(facts)} rows, {len(ledger)} accounts")
    if pc.count_distinct(ledger["uid"]).as_py() != len(ledger):
        raise LedgerError(f"{name}: a uid has two accounts")
    strange = set(pc.unique(ledger["outcome"]).to_pylist()) - set(OUTCOMES)
    if strange:
        raise LedgerError(f"{name}: unknown outcome {sorted(strange, key=str)}")


def check_run(rows_by_unit: dict[str, int], counts_by_unit: dict[str, dict[str, int]]) -> None:
    """Raise LedgerError unless every unit's accounts add up to its rows."""
    if rows_by_unit.keys() != counts_by_unit.keys():
        missing = sorted(rows_by_unit.keys() ^ counts_by_unit.keys())
        raise LedgerError(f"units without account or without rows: {missing[:5]}")
    for unit, rows in rows_by_unit.items():
        if sum(counts_by_unit[unit].values()) != rows:
            raise LedgerError(f"unit {unit}: {rows} rows, accounts {counts_by_unit[unit]}")


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of several accounts."""
    result: Counter[str] = Counter()
    for part in counts:
        result.update(part)
    return dict(sorted(result.items()))


def merge(file: BinaryIO, parts: Iterable[pa.Table]) -> None:
    """Write the units' ledgers as one file, a row group each, in the given order; one part in memory at a time."""
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part)
