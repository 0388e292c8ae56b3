"""Every rule's victims planted in a small input: the ledger names each, and nothing depends on workers or order."""

import shutil
from dataclasses import replace

import pytest

from benchmarks.victims import curate_all, judge, plant
from pipelines.curate import curate
from pipelines.publish import read_json

ROWS = 150


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(folder, what was planted, the run's options), curated in this process."""
    folder = tmp_path_factory.mktemp("victims")
    rows = plant(folder, ROWS)
    return folder, rows, curate_all(folder, workers=0)


def test_the_ledger_names_each(planted):
    folder, rows, _ = planted
    accounts = {pair.account for pair in rows.values()}
    assert len([account for account in accounts if account.startswith("dropped")]) == 21
    verdict = judge(folder, rows)
    assert verdict.rows >= ROWS and not verdict.wrong
    assert min(verdict.recall.values()) >= 0.95 and verdict.precision >= 0.95


def test_two_workers_give_the_same(planted, ray_session):
    folder, _, config = planted
    out = str(folder / "again")
    report = curate(replace(config, out=out, workers=2, source=config.source[::-1]))
    assert report.hash == read_json(config.out, "manifest.json")["hash"]
    assert sum(report.sweep[score][0][1] for score in ("sharpness", "motion")) == report.total["kept"]
    shutil.rmtree(out)
