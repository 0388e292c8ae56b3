from pathlib import Path

import pytest

from showo2.train.recipe import ModelParts
from tests.train.small import small_dataset, small_parts


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The small dataset, as --data takes it; not to be changed."""
    return (small_dataset(tmp_path_factory.mktemp("data")),)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    """Random parts of a small model."""
    folder: Path = tmp_path_factory.mktemp("parts")
    return small_parts(folder)
