"""Benchmarks write the one JSON form, and a missed aim stays missed."""

import json

import pytest

from benchmarks._report import Aim, Report, Row


def test_written_report_holds_everything(tmp_path):
    path = tmp_path / "new folder" / "speed.json"
    Report("speed", [Row("pictures", 12.5, "1/s")], [Aim("time, ours / theirs", 0.7, "<=", 0.5)]).write(path)
    written = json.loads(path.read_text())
    assert set(written) == {"name", "commit", "date", "machine", "versions", "rows", "aims"}
    assert written["rows"] == [{"name": "pictures", "value": 12.5, "unit": "1/s"}]
    assert written["aims"] == [
        {"name": "time, ours / theirs", "value": 0.7, "op": "<=", "aim": 0.5, "holds": False}
    ]
    assert written["machine"]["cores"] >= 1 and written["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize(("value", "op", "aim"), [(1, "<=", 1), (1, ">=", 1), (1, "<", 2), (2, ">", 1), (1, "==", 1)])
def test_an_aim_that_holds(value, op, aim):
    assert Aim("x", value, op, aim).holds


def test_an_unknown_comparison_is_named():
    with pytest.raises(ValueError, match="'about'.*known: <="):
        Aim("x", 1, "about", 1)
