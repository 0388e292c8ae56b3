"""Curation as a whole, on Ray: every planted row gets its account, and nothing but the input decides the bytes."""

import shutil
import socket
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.curate import CurateConfig, curate
from pipelines.rows import dataset_manifest, load_selection, read_rows
from pipelines.rules import Rules
from pipelines.sources import InputError


def published(root: Path) -> dict[str, bytes]:
    """Everything that must not depend on how the run went."""
    files = [path for path in root.rglob("*") if path.is_file()]
    skip = ("report.html", "report.json", "curate.json")
    return {str(p.relative_to(root)): p.read_bytes() for p in files if p.name not in skip}


@pytest.fixture(scope="module")
def run(planted, tmp_path_factory, ray_session):
    """One finished curation: (config, report)."""
    out = tmp_path_factory.mktemp("data")
    config = CurateConfig((f"web={planted.folder}/*.tar",), str(out), workers=2)
    return config, curate(config)


def test_every_row_has_the_planted_account(planted, run):
    config, report = run
    assert report.counts == {"web": planted.counts}
    rows = pq.read_table(f"{config.out}/ledger.parquet").to_pylist()
    assert len(rows) == len({row["uid"] for row in rows}) == len(planted.accounts) == report.rows
    for row in rows:
        account = f"{row['outcome']}:{row['reason']}" if row["reason"] else row["outcome"]
        if planted.accounts[row["key"]] != account:
            assert {row["key"], account} <= {"0000001", "0008009", "kept", "duplicate"}
    uids = {row["uid"]: row["outcome"] for row in rows}
    copies = [row for row in rows if row["outcome"] == "duplicate"]
    assert len(copies) == 1 and uids[copies[0]["duplicate_of"]] == "kept"


def test_the_selection_leads_to_the_pictures(planted, run):
    from contextlib import closing

    from pipelines.rows import MediaReader, open_picture

    config, report = run
    selection = load_selection(config.out)
    assert sum(unit.rows for unit in selection.units) == report.total["kept"]
    for unit in selection.units:
        rows = read_rows(config.out, unit).to_pylist()
        assert len(rows) == unit.rows
        with closing(MediaReader(unit.unit.path)) as media:
            row = rows[-1]
            image = open_picture(media.read(row["offset"], row["size"]), side=64)
        assert image.mode == "RGB" and min(image.size) >= 64


def test_a_second_run_does_nothing_and_gives_the_same(run):
    config, report = run
    before = {p: p.stat().st_mtime_ns for p in Path(config.out).rglob("*/*.parquet")}
    assert curate(config).hash == report.hash
    assert before == {p: p.stat().st_mtime_ns for p in Path(config.out).rglob("*/*.parquet")}


def test_what_a_worker_left_that_was_killed_in_this_run_is_gone_at_its_end(run):
    config, report = run
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = socket.gethostname().replace(".", "-")
    leftover = Path(config.out) / "facts" / f".x.parquet.{host}.{dead.pid}.0.tmp"
    leftover.write_bytes(b"half")
    assert dataset_manifest(config.out)["hash"] == report.hash
    assert not leftover.exists()


def test_one_worker_gives_the_same_bytes(run, tmp_path):
    config, report = run
    alone = CurateConfig(config.source, str(tmp_path), workers=1)
    assert curate(alone).hash == report.hash
    assert published(tmp_path) == published(Path(config.out))


def test_a_changed_threshold_remakes_selections_only(run, tmp_path):
    config, _ = run
    shutil.copytree(config.out, tmp_path, dirs_exist_ok=True)
    facts = {p: p.stat().st_mtime_ns for p in (tmp_path / "facts").iterdir()}
    report = curate(CurateConfig(config.source, str(tmp_path), Rules(min_side=521)))
    assert "kept" not in report.total and report.total["dropped:too_small"] == 121
    assert facts == {p: p.stat().st_mtime_ns for p in (tmp_path / "facts").iterdir()}
    assert report.hash == curate(CurateConfig(config.source, str(tmp_path), Rules(min_side=521))).hash


def test_the_report_stands_alone(run):
    config, report = run
    page = (Path(config.out) / "report.html").read_text()
    assert "dropped: too_small" in page and "failed: truncated" in page and "data:image/jpeg;base64" in page
    assert "http://" not in page and "https://" not in page and 'src="data:' in page
    assert "ends inside" in page and report.hash in page


def test_a_source_without_samples_is_refused(tmp_path, ray_session):
    import tarfile

    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(InputError, match=r"source web is empty: no samples in .*empty\.tar"):
        curate(CurateConfig((f"web={tmp_path}/empty.tar",), str(tmp_path / "out")))
