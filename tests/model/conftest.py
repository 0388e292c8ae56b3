"""A small random model with every part of a large one."""

import pytest
import torch

from showo2.model import FlowHeadConfig, Showo2, Showo2Config
from showo2.text import SpecialTokens

SPECIAL = SpecialTokens(*range(280, 289))


def small_config(width: int = 48, tied: bool = True) -> Showo2Config:
    llm = {"model_type": "qwen2", "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300, "tie_word_embeddings": tied}
    siglip = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
              "image_size": 64, "patch_size": 16}
    return Showo2Config(llm, siglip, FlowHeadConfig(32, 2, 4, 2, 8, 64), grid=4, conversation="plain", size=64)


def random_model(config: Showo2Config) -> Showo2:
    """Every parameter drawn, so that nothing stays hidden behind adaLN's zeros."""
    torch.manual_seed(0)
    model = Showo2(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 and p.mean() == 1 else 0.0, 0.1)
    return model


@pytest.fixture
def model() -> Showo2:
    return random_model(small_config())
