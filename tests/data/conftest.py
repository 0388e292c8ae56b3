import pytest

from showo2.shards import Manifest
from tests.train.small import small_dataset


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The small dataset: 48 pairs of `web` in two shards, 24 conversations of `instruct`."""
    return Manifest.load(small_dataset(tmp_path_factory.mktemp("data")))
