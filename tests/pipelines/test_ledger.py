"""The ledger: one account a row, sums that close, and an error where they do not."""

import io

import pyarrow as pa
import pytest

from pipelines import ledger
from pipelines.facts import SCHEMA
from pipelines.rules import Rules, reasons


def facts(*rows: dict) -> pa.Table:
    """Facts of a unit with 600 x 600 pictures, changed as the rows say."""
    base = {
        "source": "web",
        "unit": "u",
        "tar": "t",
        "kind": "pair",
        "text": "x",
        "width": 600,
        "height": 600,
    }
    entries = [
        {**base, "animated": False, "uid": f"{n:032x}", "key": str(n), "row": n, **row}
        for n, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(entries, SCHEMA)


MIXED = facts(
    {},
    {"text": None},
    {"height": 511},
    {"width": 511, "text": None},
    {"animated": True},
    {"error": "truncated", "detail": "cut", "width": None, "height": None},
    {},
    {"kind": "conversation", "text": None},
    {},
)


def test_each_row_has_its_account():
    account = ledger.settle(MIXED, Rules(), {6: ("same", "0" * 32), 8: ("repeated_key", None)})
    ledger.check_unit(MIXED, account)
    assert ledger.count(account) == {
        "dropped:animated": 1,
        "dropped:missing_caption": 2,
        "dropped:too_small": 1,
        "duplicate": 1,
        "failed:repeated_key": 1,
        "failed:truncated": 1,
        "kept": 2,
    }
    rows = account.to_pylist()
    assert rows[6]["duplicate_of"] == "0" * 32 and rows[5]["detail"] == "cut"
    assert rows[8]["uid"] != MIXED["uid"][8].as_py()


def test_rules_answer_for_sizes_that_are_unknown():
    assert reasons(facts({"width": None, "height": None, "animated": None}), Rules()).to_pylist() == [None]


def test_sums_that_differ_fail_the_run():
    account = ledger.settle(MIXED, Rules(), {})
    with pytest.raises(ledger.LedgerError, match="9 rows, 8 accounts"):
        ledger.check_unit(MIXED, account.slice(1))
    twice = pa.concat_tables([account.slice(0, 8), account.slice(0, 1)])
    with pytest.raises(ledger.LedgerError, match="two accounts"):
        ledger.check_unit(MIXED, twice)
    with pytest.raises(ledger.LedgerError, match="unit u"):
        ledger.check_run({"u": 3}, {"u": {"kept": 2}})
    with pytest.raises(ledger.LedgerError, match="without account"):
        ledger.check_run({"u": 3, "v": 1}, {"u": {"kept": 3}})
    ledger.check_run({"u": 3}, {"u": {"kept": 2, "failed:truncated": 1}})


def test_merge_keeps_the_order_of_units():
    account = ledger.settle(MIXED, Rules(), {})
    file = io.BytesIO()
    ledger.merge(file, [account.slice(0, 4), account.slice(4)])
    assert pa.parquet.read_table(pa.BufferReader(file.getvalue())) == account
