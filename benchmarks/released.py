"""The training forward as the released implementation performs it: everything, everywhere.

Written from docs/model.md to be measured against, on the weights of our own model: a fixed length a sample, a dense
int64 mask, LM head and flow head on every position, full-size modulation tensors filled by loops over pictures, keys
and values repeated for grouped queries, every activation kept for backward.
Shapes: B samples, L context, n = B pictures (one a sample), N visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from showo2 import flow
from showo2.model import Showo2
from showo2.model.flow_head import FlowBlock, rope, rope_frequencies, rotate

_ATTENTION = "released"


@dataclass(frozen=True)
class ReleasedBatch:
    """One sample a row: ids, labels (unshifted) and image_mask (1 on visual tokens to learn) are (B, L) int64;
    spans: (offset, length) of the picture of each row; latents, velocity: (B, C, h, w); t: (B,)."""

    ids: Tensor
    labels: Tensor
    image_mask: Tensor
    spans: list[tuple[int, int]]
    latents: Tensor
    velocity: Tensor
    t: Tensor

    def to(self, device: torch.device) -> ReleasedBatch:
        """The same batch on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "spans"})


def _attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: None, scaling: float | None = None,
               *, omni_mask: Tensor, **_: object) -> tuple[Tensor, None]:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=omni_mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)


def without_savings(model: Showo2) -> Showo2:
    """The model with Hugging Face's own layers as they are: no forward of ours in them (`showo2.model.lean`)."""
    for module in model.modules():
        if type(module).__name__.startswith("Lean"):
            module.__class__ = type(module).__base__
    model.language_model.set_attn_implementation(_ATTENTION)
    return model


def dense_additive_mask(ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """(B, 1, L, L) float mask, built through int64 matrices as the released helper does."""
    b, length = ids.shape
    place = torch.arange(length, device=ids.device)
    causal = (place[:, None] >= place[None, :]).long()[None].repeat(b, 1, 1)
    for row, (offset, size) in enumerate(spans):
        inside = ((place >= offset) & (place < offset + size)).long()
        causal[row] = torch.maximum(causal[row], inside[:, None] * inside[None, :])
    blocked = (1 - causal) * torch.iinfo(torch.int64).min
    return blocked.float()[:, None]


def _modulations(table: Tensor, spans: list[tuple[int, int]], length: int, text: float) -> Tensor:
    full = table.new_full((table.shape[0], length, table.shape[1]), text)
    for row, (offset, size) in enumerate(spans):
        full[row, offset:offset + size] = table[row]
    return full


def _block(block: FlowBlock, x: Tensor, time: Tensor, spans: list[tuple[int, int]], mask: Tensor) -> Tensor:
    length = x.shape[1]
    tables = block.modulation(time).chunk(6, -1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
        _modulations(t, spans, length, text) for t, text in zip(tables, (0, 0, 1, 0, 0, 1), strict=True))
    attention = block.attention
    h = block.attention_norm(x) * (1 + scale_a) + shift_a
    cos, sin = rope(torch.arange(length, device=x.device)[None], rope_frequencies(attention.head_dim))
    q, k, v = (p(h).unflatten(-1, (-1, attention.head_dim)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    q, k = (rotate(norm(y).transpose(1, 2), cos, sin) for norm, y in ((attention.q_norm, q), (attention.k_norm, k)))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.transpose(1, 2).repeat_interleave(groups, 1)
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + gate_a * attention.o_proj(h.transpose(1, 2).flatten(2))
    h = block.mlp_norm(x) * (1 + scale_m) + shift_m
    mlp = block.mlp
    return x + gate_m * mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))


def forward(model: Showo2, batch: ReleasedBatch) -> tuple[Tensor, Tensor]:
    """The next-token loss and the flow loss, each a mean over its targets; `model` is one `without_savings`."""
    b, length = batch.ids.shape
    time = model.time_embed(batch.t)
    fused = model.fuse(batch.latents)
    embeds = model.embed_text(batch.ids).clone()
    for row, (offset, size) in enumerate(batch.spans):
        embeds[row, offset] = model.time_project(time)[row]
        embeds[row, offset + 1:offset + size] = fused[row]
    mask = dense_additive_mask(batch.ids, batch.spans)
    out = model.language_model.model(inputs_embeds=embeds, omni_mask=mask, use_cache=True, output_hidden_states=True,
                                     position_ids=torch.arange(length, device=embeds.device)[None].expand(b, -1))
    logits = model.logits(out.last_hidden_state)
    ntp = F.cross_entropy(logits[:, :-1].contiguous().view(-1, logits.shape[-1]).float(),
                          batch.labels[:, 1:].contiguous().view(-1))
    x = model.flow_head.project(out.last_hidden_state)
    for block in model.flow_head.blocks:
        x = _block(block, x, time, batch.spans, mask)
    final = model.flow_head.final
    shift, scale = (_modulations(t, batch.spans, length, 0) for t in final.modulation(time).chunk(2, -1))
    velocity = final.linear(final.norm(x) * (1 + scale) + shift)
    wanted = torch.zeros_like(velocity)
    tokens = flow.to_tokens(batch.velocity[:, :, None])
    for row, (offset, size) in enumerate(batch.spans):
        wanted[row, offset + 1:offset + size] = tokens[row]
    learned = batch.image_mask.bool()[..., None].expand_as(velocity)
    return ntp, ((velocity - wanted).square() * learned).sum() / learned.sum()
