"""The flow head (section 3.1): transformer blocks modulated by time that turn hidden states into velocities.

Only visual tokens (their time token included) are modulated: text passes with shift 0, scale 0 and gate 1, so what
the text prefix computes does not depend on t.
Shape suffixes: B rows, L tokens, D width, n visual spans.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from showo2.model.attention import Mask, attend
from showo2.model.config import FlowHeadConfig
from showo2.model.lean import gated_mlp, recomputed


def time_sinusoid(t: Tensor, width: int = 256) -> Tensor:
    """cat[cos, sin](t * 10000^(-i/(width/2))), float32 (n, width); t in [0, 1] is not scaled by 1000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class TimeEmbedding(nn.Module):
    """t (n,) to (n, D): sinusoid, Linear, SiLU, Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_sinusoid(t).to(next(self.mlp.parameters()).dtype))


def rope_frequencies(head_dim: int, theta: float = 5e5, factor: float = 32.0, low: float = 1.0, high: float = 4.0,
                     original_length: int = 8192) -> Tensor:
    """Inverse frequencies (head_dim/2,) of llama3-scaled rotary embeddings."""
    inverse = 1 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    wavelength = 2 * math.pi / inverse
    smooth = (original_length / wavelength - low) / (high - low)
    blended = (1 - smooth) * inverse / factor + smooth * inverse
    long, short = wavelength > original_length / low, wavelength < original_length / high
    return torch.where(long, inverse / factor, torch.where(short, inverse, blended))


def rope(position: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, L, head_dim), float32, of positions (B, L)."""
    angles = position[:, None, :, None].float() * inverse.to(position.device)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, H, L, E)."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)


class _Modulate(torch.autograd.Function):
    """x * (1 + scale[index]) + shift[index] in fp32; keeps the small tables for backward, not their full-size copies."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, index)
        return torch.addcmul(F.embedding(index, shift), x.float(), 1 + F.embedding(index, scale)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, index = ctx.saved_tensors
        grad = grad.float()
        # Thousands of tokens share a row: on GPUs index_add_ would queue for it, and sum in another order each time.
        members = F.one_hot(index.flatten(), len(scale)).to(grad).T
        to_shift, to_scale = (members @ g.flatten(0, 1) for g in (grad, grad * x))
        return (grad * (1 + F.embedding(index, scale))).to(x.dtype), to_shift, to_scale, None


def modulate(x: Tensor, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """x * (1 + scale) + shift in fp32, each token with row `index` (B, L) of shift and scale (n + 1, D)."""
    return _Modulate.apply(x, shift, scale, index)


def gated(x: Tensor, gate: Tensor, index: Tensor) -> Tensor:
    """x * gate in fp32, each token with row `index` of gate (n + 1, D)."""
    return _Modulate.apply(x, torch.zeros_like(gate), gate - 1, index)


def _with_text_row(table: Tensor, value: float) -> Tensor:
    """Put the row of text tokens (index 0) before those of the n visual spans."""
    return torch.cat([table.new_full((1, table.shape[1]), value), table])


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on q and k before RoPE."""

    def __init__(self, c: FlowHeadConfig):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.width, bias=False)
        self.q_norm = nn.RMSNorm(c.head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(c.head_dim, eps=1e-6)

    def forward(self, x: Tensor, mask: Mask, cos: Tensor, sin: Tensor, cache: DynamicCache | None,
                layer: int) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q = recomputed(lambda q: rotate(self.q_norm(q).transpose(1, 2), cos, sin), q)
        k = recomputed(lambda k: rotate(self.k_norm(k).transpose(1, 2), cos, sin), k)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, intermediate: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate, bias=False)
        self.up_proj = nn.Linear(width, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, width, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return gated_mlp(self, x)


class FlowBlock(nn.Module):
    """Attention and SwiGLU, each between a modulation and a gate (adaLN-Zero)."""

    def __init__(self, c: FlowHeadConfig):
        super().__init__()
        self.attention = Attention(c)
        self.mlp = SwiGLU(c.width, c.intermediate)
        self.attention_norm = nn.RMSNorm(c.width, eps=1e-5)
        self.mlp_norm = nn.RMSNorm(c.width, eps=1e-5)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.width, 6 * c.width))

    def forward(self, x: Tensor, time: Tensor, index: Tensor, mask: Mask, cos: Tensor, sin: Tensor,
                cache: DynamicCache | None, layer: int) -> Tensor:
        tables = self.modulation(time).float().chunk(6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            _with_text_row(table, value) for table, value in zip(tables, (0, 0, 1, 0, 0, 1), strict=True))
        h = recomputed(lambda x: modulate(self.attention_norm(x), shift_a, scale_a, index), x)
        x = x + gated(self.attention(h, mask, cos, sin, cache, layer), gate_a, index)
        h = self.mlp(recomputed(lambda x: modulate(self.mlp_norm(x), shift_m, scale_m, index), x))
        return x + gated(h, gate_m, index)


class FinalLayer(nn.Module):
    """RMSNorm, modulation, Linear to the pixels of a token."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, time: Tensor, index: Tensor) -> Tensor:
        shift, scale = (_with_text_row(table, 0) for table in self.modulation(time).float().chunk(2, -1))
        return self.linear(modulate(self.norm(x), shift, scale, index))


class FlowHead(nn.Module):
    """Hidden states of the language model (after its final norm) to velocities."""

    def __init__(self, c: FlowHeadConfig, llm_width: int, out: int):
        super().__init__()
        self.head_dim = c.head_dim
        self.project = (nn.Identity() if llm_width == c.width else
                        nn.Sequential(nn.Linear(llm_width, c.width), nn.GELU(), nn.Linear(c.width, c.width)))
        self.blocks = nn.ModuleList(FlowBlock(c) for _ in range(c.layers))
        self.final = FinalLayer(c.width, out)

    def forward(self, hidden: Tensor, time: Tensor, index: Tensor, position: Tensor, mask: Mask,
                cache: DynamicCache | None = None) -> Tensor:
        """Velocity tokens (B, L, 4*C).

        hidden: (B, L, D_llm); time: (n, D) embedding of each visual span's t; index: (B, L) int64, 0 for text, else
        1 + the span's row in `time`; position: (B, L); `cache` holds what came before and takes these keys and values.
        """
        cos, sin = rope(position, rope_frequencies(self.head_dim))
        x = self.project(hidden)
        for i, block in enumerate(self.blocks):
            x = block(x, time, index, mask, cos, sin, cache, i)
        return self.final(x, time, index)

    def init_weights(self) -> None:
        """adaLN-Zero: every gate and the output start at zero."""
        for name, parameter in self.named_parameters():
            if ".modulation." in name:
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.final.linear.weight)
        nn.init.zeros_(self.final.linear.bias)
