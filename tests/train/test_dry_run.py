"""A step on 128 ranks that do not exist: what it counts is what a real step would hold."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from showo2.model import FlowHeadConfig, Showo2, Showo2Config
from showo2.recipes.paper import STAGE1A, STAGE2C_7B
from showo2.train.dry_run import Footprint, dry_run
from showo2.train.recipe import Parallel, Recipe

LLM = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "tie_word_embeddings": False}  # fmt: skip
SIGLIP = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
CONFIG = Showo2Config(LLM, SIGLIP, FlowHeadConfig(32, 2, 4, 2, 8, 64))


def run(recipe: Recipe, gpus: int = 128, **plan: object) -> Footprint:
    return dry_run(replace(recipe, parallel=replace(recipe.parallel, **plan)), CONFIG, gpus)


@pytest.fixture(scope="module")
def kept() -> Footprint:
    return run(STAGE2C_7B, shard=8, recompute="nothing")


def test_everything_is_counted(kept):
    with torch.device("meta"):
        whole = sum(4 * p.numel() for p in Showo2(CONFIG).parameters())
    # Each tensor is cut into eight along its first dimension; what does not divide leaves this rank a little more.
    assert whole / 8 <= kept.parameters < 1.02 * whole / 8
    assert kept.gradients == kept.parameters == kept.average
    assert 2 * kept.parameters <= kept.optimizer < 2 * kept.parameters + 4000
    assert kept.peak >= kept.parameters + kept.average + kept.optimizer - 4000 + kept.activations
    assert kept.peak < 1.5 * (kept.optimizer + kept.activations)
    assert (kept.rows, kept.context) == (4, 1024)
    assert not dist.is_initialized()


def test_recomputing_needs_less(kept):
    blocks = run(STAGE2C_7B, shard=8, recompute="blocks")
    assert blocks.activations < kept.activations
    assert blocks.gradients == kept.gradients


def test_frozen_parts_have_no_state():
    frozen = run(STAGE1A, gpus=64)
    assert frozen.gradients == frozen.average < frozen.parameters
    assert STAGE1A.parallel == Parallel(8, "bf16", "nothing", True)
