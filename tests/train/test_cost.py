"""FLOPs as the mask leaves them, against PyTorch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from showo2.sequence import Media, Text, captioning, pack, text_to_image
from showo2.train import cost
from showo2.train.losses import Unified
from showo2.train.recipe import NEW_PARTS, Group, Parallel
from showo2.train.start import build_model
from tests.train.small import small_recipe

ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *_, **__: 0,
             torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *_, **__: 0,
             torch.ops.aten.bmm: lambda *_, **__: 0}  # fmt: skip


@pytest.fixture(scope="module")
def model(parts):
    return build_model(small_recipe(parts), None)


@pytest.fixture(scope="module")
def batch(model):
    special = model[1].special
    drawn = Media(torch.randn(16, 1, 8, 8), 0.5, torch.randn(16, 1, 8, 8), target=True)
    return pack([[text_to_image(special, list(range(20, 60)), drawn)],
                 [captioning(special, Media(torch.randn(16, 1, 8, 8)), list(range(20, 80)))]], 96, special)  # fmt: skip


def test_pairs_are_those_that_the_mask_lets_attend(batch):
    from showo2.model.attention import dense_mask

    seen = dense_mask(batch.doc, batch.span)[:, 0] & (batch.doc > 0)[:, :, None]
    assert cost._attended(batch.doc, batch.span) == int(seen.sum())


def test_matrices_are_what_pytorch_counts(model, batch, parts, monkeypatch):
    """Without attention, which PyTorch counts dense; padding counts for it, so the rows have as little as possible."""
    monkeypatch.setattr(cost, "_attended", lambda doc, span: 0.0)
    width, layers, tokens, pictures = 32, 2, 16, 2
    inside_semantic = 3 * pictures * layers * 4 * tokens**2 * width
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        Unified(model[0], 1.0).sums(batch).sum().backward()
    mine = cost.flops(batch, model[0].config, small_recipe(parts)).useful - inside_semantic
    padding = 1 - float((batch.doc > 0).float().mean())
    assert (1 - padding) * counter.get_total_flops() * 0.9 < mine < counter.get_total_flops()


def test_frozen_parts_cost_less_and_recomputation_is_no_use(model, batch, parts):
    everything = cost.flops(batch, model[0].config, small_recipe(parts))
    frozen = cost.flops(batch, model[0].config, small_recipe(parts, groups=(Group(NEW_PARTS, 1.0),)))
    again = cost.flops(batch, model[0].config, small_recipe(parts, parallel=Parallel(recompute="blocks")))
    assert frozen.useful < everything.useful == everything.done == again.useful < again.done


def test_text_alone_draws_nothing(model, parts):
    special = model[1].special
    text = [Text(list(range(20, 60)), True)]
    one, two = (pack([[text] * n], 96, special) for n in (1, 2))
    recipe = replace(small_recipe(parts), steps=1)
    assert cost.flops(two, model[0].config, recipe).useful == 2 * cost.flops(one, model[0].config, recipe).useful
