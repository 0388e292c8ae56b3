import dataclasses
import json

import pytest

from showo2.shards import Manifest, TextRow
from tests.train.small import small_dataset, uid_of, write_shard


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The small dataset: 48 pairs of `web` in two shards, 24 conversations of `instruct`."""
    return Manifest.load(small_dataset(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The small dataset with 12 clips, 12 stories of three pictures and 12 texts."""
    manifest = Manifest.load(small_dataset(tmp_path_factory.mktemp("everything")))
    story = [{"text": "one"}, {"image": 0}, {"text": "two"}, {"image": 1}, {"text": "three"}, {"image": 2}]

    def told(source: str, row: int) -> TextRow:
        return TextRow(uid_of(source, row), messages=json.dumps(story))

    def said(source: str, row: int) -> TextRow:
        return TextRow(uid_of(source, row), f"text number {row}")

    more = [write_shard(manifest.root, "clips", "pair", 0, range(12), (5, 8, 8)),
            write_shard(manifest.root, "stories", "interleaved", 0, range(12), (3, 8, 8), told),
            write_shard(manifest.root, "texts", "text", 0, range(12), (0, 0, 0), said)]
    return dataclasses.replace(manifest, shards=(*manifest.shards, *more))
