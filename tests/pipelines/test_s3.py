"""Curation from and to an object store: the same command, the same accounts."""

import os
import subprocess
import sys
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from pipelines.publish import read_bytes, read_json
from pipelines.rows import load_selection, read_rows
from pipelines.sources import InputError, plan

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket on a server of our own; its address and keys stand in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            environment.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        yield client
    server.stop()


@pytest.mark.timeout(240)
def test_the_job_reads_from_and_writes_to_s3(planted, bucket):
    for path in sorted(planted.folder.iterdir()):
        bucket.upload_file(str(path), "pictures", f"web/{path.name}")
    out = "s3://pictures/data"
    command = [sys.executable, "-m", "jobs.curate", "--source", "web=s3://pictures/web/*.tar", "--out", out]
    done = subprocess.run(
        command, cwd=PROJECT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_json(out, "report.json")["sources"] == {"web": planted.counts}
    (path := planted.folder.parent / "ledger.parquet").write_bytes(read_bytes(out, "ledger.parquet"))
    assert len(pq.read_table(path)) == len(planted.accounts)
    selection = load_selection(out)
    rows = [row for unit in selection.units for row in read_rows(out, unit).to_pylist()]
    assert len(rows) == planted.counts["kept"] and rows[0]["tar"] == "s3://pictures/web/00000.tar"
    listed = bucket.list_objects_v2(Bucket="pictures")["Contents"]
    assert not [entry["Key"] for entry in listed if entry["Key"].endswith(".tmp")]


def test_what_is_not_there_is_named(bucket):
    with pytest.raises(InputError, match=r"no tar matches s3://pictures/\*\.tar"):
        plan(["web=s3://pictures/*.tar"])
    with pytest.raises(InputError, match=r"s3://pictures/nothing\.tar does not exist"):
        plan(["web=s3://pictures/nothing.tar"])
    with pytest.raises(InputError, match="foo://x/y.tar cannot be opened"):
        plan(["web=foo://x/y.tar"])
