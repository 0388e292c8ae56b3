"""FLOPs of a batch as the mask leaves them: pairs that attend, tokens that are no padding, passes that are made.

A multiply-add is two. Small things (norms, activations, embeddings, rotary tables) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from showo2.data.documents import Pairs
from showo2.flow import PATCH
from showo2.model import Showo2Config
from showo2.sequence import IGNORE, Packed
from showo2.train.recipe import Recipe
from showo2.vae import CHANNELS

# Dense bf16 FLOP/s of a GPU, by a part of its name (NVIDIA's data sheets, without sparsity).
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class Flops:
    """useful: what the mathematics needs, for MFU. done: with what is computed a second time, for HFU."""

    useful: float
    done: float

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.useful + other.useful, self.done + other.done)


def peak(device: torch.device) -> float | None:
    """FLOP/s that `device` is sold with; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for part, flops in PEAK.items() if part in name), None)


def flops(batch: Packed | Pairs, config: Showo2Config, recipe: Recipe) -> Flops:
    """Of a forward and a backward pass over one micro-batch, with what `recipe` trains and recomputes."""
    if isinstance(batch, Pairs):
        frames = len(batch.latents)
        student = frames * _semantic(config, _tokens(batch.latents))
        # The teacher's penultimate layer on as many tokens as its picture has, forward only.
        teacher = frames * _semantic(config, (config.siglip["image_size"] // config.siglip["patch_size"]) ** 2)
        return _passes(student, True, True, recipe) + Flops(teacher, teacher)
    trained = {part for group in recipe.groups for part in group.parts}

    def trains(part: str) -> bool:
        return any(name.startswith(part) for name in trained)

    spans = sum(len(v.t) for v in batch.visuals)
    semantic = sum(len(v.t) * v.latents.shape[2] * _semantic(config, _tokens(v.latents)) for v in batch.visuals)
    visual = sum(len(v.t) * v.latents.shape[2] * _tokens(v.latents) for v in batch.visuals)
    llm = config.llm
    width, wide = llm["hidden_size"], config.siglip["hidden_size"]
    fusion = 2 * visual * ((wide + width) * width + width * width)
    real = batch.doc > 0
    language = llm["num_hidden_layers"] * _block(
        int(real.sum()), _attended(batch.doc, batch.span), width, width,
        width * llm["num_key_value_heads"] // llm["num_attention_heads"], llm["intermediate_size"])
    head = 2 * width * llm["vocab_size"] * int((batch.labels != IGNORE).sum())
    return (_passes(semantic, trains("semantic."), trains("semantic."), recipe)
            + _passes(fusion, trains("fusion."), True, recipe, block=False)
            + _passes(language, trains("language_model."), True, recipe)
            + _passes(head, trains("language_model."), True, recipe, block=False)
            + _passes(_flow_head(batch, config, spans), trains("flow_head."), True, recipe))


def _passes(forward: float, trained: bool, passed: bool, recipe: Recipe, block: bool = True) -> Flops:
    """Forward, gradients of activations where the graph passes through, gradients of weights where they train."""
    useful = forward * (1 + passed + trained)
    again = forward if block and passed and recipe.parallel.recompute == "blocks" else 0.0
    return Flops(useful, useful + again)


def _block(tokens: int, pairs: float, width: int, queries: int, keys: int, inner: int) -> float:
    """One layer with grouped-query attention and SwiGLU."""
    return 2 * tokens * width * (2 * queries + 2 * keys + 3 * inner) + 4 * pairs * queries


def _semantic(config: Showo2Config, tokens: int) -> float:
    """S on one picture."""
    width, inner = config.siglip["hidden_size"], config.siglip["intermediate_size"]
    layer = 2 * tokens * width * (4 * width + 2 * inner) + 4 * tokens * tokens * width
    return (config.siglip["num_hidden_layers"] - 1) * layer


def _flow_head(batch: Packed, config: Showo2Config, spans: int) -> float:
    columns, c = batch.flow.clamp(min=0), config.flow
    doc = batch.doc.gather(1, columns).masked_fill(batch.flow < 0, 0)
    span = batch.span.gather(1, columns).masked_fill(batch.flow < 0, 0)
    tokens = int((batch.flow >= 0).sum())
    blocks = c.layers * (_block(tokens, _attended(doc, span), c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim,
                                c.intermediate) + 2 * spans * 6 * c.width**2)
    width = config.llm["hidden_size"]
    project = 0 if width == c.width else 2 * tokens * (width * c.width + c.width**2)
    return blocks + project + 2 * tokens * c.width * CHANNELS * PATCH**2


def _attended(doc: Tensor, span: Tensor) -> float:
    """Pairs of positions of which the first sees the second."""
    documents = torch.unique(doc[doc > 0], return_counts=True)[1].double()
    visual = torch.unique(span[span > 0], return_counts=True)[1].double()
    return float((documents * (documents + 1)).sum() / 2 + (visual * (visual - 1)).sum() / 2)


def _tokens(latents: Tensor) -> int:
    return latents.shape[-2] * latents.shape[-1] // PATCH**2
