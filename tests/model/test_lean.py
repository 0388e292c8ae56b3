"""What is made again in backward gives the same gradients, and is not kept."""

from dataclasses import replace

import torch
from torch._dynamo.testing import CompileCounter

from showo2.model import lean
from tests.model.conftest import random_model, small_config
from tests.model.test_model import draw, losses, read


def step(model) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a batch, and bytes of activations kept for backward."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        total = losses(model, [[draw(0), read(1)]])[:2].sum()
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}, sum(kept.values())


def test_recomputation_changes_memory_and_nothing_else(monkeypatch):
    plain, much = step(random_model(small_config()))
    monkeypatch.setattr(lean, "_WORTHWHILE", 0)
    recomputed, little = step(random_model(small_config()))
    for name, gradient in plain.items():
        assert torch.equal(recomputed[name], gradient), name
    assert little < 0.9 * much


def test_equal_blocks_are_compiled_once():
    """A compiler that takes each block for another one gives up after eight of them, and runs the rest as they are."""
    config = small_config()
    config = replace(config, llm=config.llm | {"num_hidden_layers": 3})
    model, compiled = random_model(config), CompileCounter()
    for layer in model.language_model.model.layers:
        layer.forward = torch.compile(layer.forward, backend=compiled)
    losses(model, [[draw(0), read(1)]])
    assert compiled.frame_count == 1
