"""What is made again in backward gives the same gradients, and is not kept."""

from dataclasses import replace

import torch
from torch._dynamo.testing import CompileCounter

from showo2.model import lean
from showo2.model import model as module
from showo2.model.attention import dense_mask, document_mask
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
    config = replace(config, llm=config.llm | {"num_hidden_layers": 4})
    model, compiled = random_model(config), CompileCounter()
    for layer in model.language_model.model.layers:
        layer.forward = torch.compile(layer.forward, backend=compiled)
    losses(model, [[draw(0), read(1)]])
    assert compiled.frame_count == 2  # the last one, which computes only what is read, is another


def test_the_last_block_computes_only_what_is_read(monkeypatch):
    """Losses and gradients are those of all rows, and rows that nobody reads cost no MLP."""
    batch, results = [[draw(0), read(1)], [read(2)]], []
    for trimmed in (True, False):
        if not trimmed:
            monkeypatch.setattr(module, "read_by_losses", lambda packed, mask: None)
        for make in (dense_mask, document_mask):
            monkeypatch.setattr(module, "make_mask", make)
            model, rows = random_model(small_config()), []
            mlp = model.language_model.model.layers[-1].mlp
            mlp.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0].shape[:-1].numel()))
            total = losses(model, batch)[:2]
            total.sum().backward()
            results.append((total.detach(), {name: p.grad for name, p in model.named_parameters()}, rows[0]))
    (whole, gradients, most), others = results[-1], results[:-1]
    assert [result[2] for result in results] == [results[0][2]] * 2 + [most] * 2 and results[0][2] < 0.8 * most
    size = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for total, found, _ in others:
        torch.testing.assert_close(total, whole, rtol=1e-6, atol=0)
        for name, gradient in gradients.items():
            assert (found[name] - gradient).norm() < 1e-5 * gradient.norm().clamp(1e-2 * size), name
