"""Random models: a small one of ours, and those of the released implementation's recordings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from showo2.generate import Showo2Pipeline
from showo2.model import Showo2
from tests.generate.checkpoint import random_checkpoint, random_model

GOLDEN = Path(__file__).parents[1] / "golden"
Golden = tuple[Showo2, dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def model() -> Showo2:
    return random_model()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pipeline(checkpoint: str) -> Showo2Pipeline:
    return Showo2Pipeline.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """The model and the tensors of a recorded scenario."""
    def load(name: str) -> Golden:
        folder = GOLDEN / f"model_{name.rsplit('_', 1)[1]}"
        config = json.loads((folder / "config.json").read_text())["config"]
        llm = {"model_type": "qwen2", **config["llm_config_on_disk(vocab before resize)"]}
        siglip = config["siglip_vision_config"]
        model = Showo2.from_pretrained(folder / "official_save_pretrained", llm=llm, siglip=siglip)
        return model.eval(), load_file(GOLDEN / f"{name}.safetensors")

    return load
