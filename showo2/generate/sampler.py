"""Pictures from what stands before them: Euler steps along the learned velocity from noise (t = 0) to data (t = 1), with
guidance.

Exact savings over running whole sequences: text and clean pictures before a picture do not depend on t, neither in the
language model nor in the flow head, so their keys and values are computed once; what follows the picture cannot change it
and is never built; no LM head; the semantic layers, projector and fusion run once for both rows of guidance.
Shape suffixes: n pictures, R rows (n, or 2n under guidance), P longest prefix, V = 1 + N tokens of a visual span.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from showo2 import flow
from showo2.model import Showo2
from showo2.model.attention import dense_mask
from showo2.sequence import Document, Packed, Text, length, opened, pack
from showo2.text import SpecialTokens


@dataclass(frozen=True)
class Sampling:
    """`points` of the time grid (points - 1 Euler steps) and the strength of classifier-free guidance (1: none)."""

    points: int = 50
    guidance: float = 5.0

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"points={self.points}: a time grid needs at least its two ends; use 2 or more")


class PrefixCache(DynamicCache):
    """Keys and values of a prefix; once frozen, what follows sees them and leaves no trace."""

    frozen = False

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any,
               **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, P + new, E) that the new positions attend to."""
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        prefix = self.layers[layer_idx]
        return torch.cat([prefix.keys, key_states], -2), torch.cat([prefix.values, value_states], -2)


class Velocity:
    """v(x_t, t) of media that follow documents: the documents run through the model once, at construction."""

    def __init__(self, model: Showo2, special: SpecialTokens, documents: Sequence[Document], shape: tuple[int, int, int]):
        """`documents` stand before the media, one a row (R); `shape` is the latents' (T, h, w)."""
        self.model, self.shape = model, shape
        documents = [opened(special, document, shape[0] > 1) for document in documents]
        lengths = [length(document) for document in documents]
        device = next(model.parameters()).device
        prefix = pack([[document] for document in documents], max(lengths), special).to(device)
        rows, tokens = len(documents), 1 + shape[0] * shape[1] * shape[2] // flow.PATCH**2
        # Documents are padded on the right up to P, but the span's positions go on where its own document ends.
        self.position = torch.tensor(lengths, device=device)[:, None] + torch.arange(tokens, device=device)
        self.index = torch.arange(1, rows + 1, device=device)[:, None].expand(rows, tokens)
        doc = torch.cat([prefix.doc, prefix.doc[:, :1].expand(rows, tokens)], 1)
        span = torch.cat([prefix.span, prefix.span.max() + self.index], 1)
        self.mask = dense_mask(doc, span, slice(max(lengths), None))
        self.llm_cache, self.head_cache = PrefixCache(), PrefixCache()
        self._read(prefix)

    def _read(self, prefix: Packed) -> None:
        mask = dense_mask(prefix.doc, prefix.span)
        embeds, time = self.model.embed(prefix)
        hidden = self.model.language(embeds, mask, prefix.position, self.llm_cache)
        self.model.flow_head(hidden, time, prefix.span, prefix.position, mask, self.head_cache)
        self.llm_cache.frozen = self.head_cache.frozen = True

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocities (R, C, T, h, w), float32, of latents x (n, C, T, h, w) at time t (scalar); row r is of x[r % n]."""
        time, span = self.model.embed_visual(x, t.expand(len(x)))
        repeats = len(self.position) // len(x)
        time, span = time.repeat(repeats, 1), span.repeat(repeats, 1, 1)
        hidden = self.model.language(span, self.mask, self.position, self.llm_cache)
        tokens = self.model.flow_head(hidden, time, self.index, self.position, self.mask, self.head_cache)
        return flow.from_tokens(tokens[:, 1:].float(), self.shape, self.model.config.order)


@torch.inference_mode()
def sample(model: Showo2, special: SpecialTokens, documents: Sequence[Document], noise: Tensor, sampling: Sampling,
           held: int = 0) -> Tensor:
    """Latents (n, C, T, h, w), float32, that follow the n `documents`, from `noise` of the same shape.

    The null condition of guidance is a document of [BOS] alone. held: the first frames that stay as `noise` has them (image
    to video: put the picture's latent there).
    """
    guided = sampling.guidance != 1
    frames, height, width = noise.shape[2:]
    nothing: list[Document] = [[Text([special.bos])] for _ in documents] if guided else []
    velocity = Velocity(model, special, [*documents, *nothing], (frames, height, width))
    x = noise.float()
    for t, following in pairwise(flow.sampling_times(sampling.points).to(x.device)):
        v = velocity(x, t)
        if guided:
            v_text, v_null = v.chunk(2)
            v = flow.guide(v_null, v_text, sampling.guidance)
        v[:, :, :held] = 0
        x = x + (following - t) * v
    return x


def start_noise(seed: int, indices: Iterable[int | str], shape: tuple[int, int, int, int]) -> Tensor:
    """Noise (n, C, T, h, w), float32 on the CPU; each picture's depends on (seed, index) and on nothing else."""
    def draw(index: int | str) -> Tensor:
        digest = hashlib.sha256(f"picture:{seed}:{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator)

    return torch.stack([draw(index) for index in indices])
