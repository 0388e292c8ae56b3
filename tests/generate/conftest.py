"""Random models."""

import pytest

from showo2.generate import Showo2Pipeline
from showo2.model import Showo2
from tests.generate.checkpoint import random_checkpoint, random_model


@pytest.fixture(scope="session")
def model() -> Showo2:
    return random_model()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pipeline(checkpoint: str) -> Showo2Pipeline:
    return Showo2Pipeline.from_pretrained(checkpoint)
