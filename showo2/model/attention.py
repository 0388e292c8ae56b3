"""Omni-attention (section 3.1): causal, and full inside each visual span; one mask object for every layer of a step.

    attend(q, k)  <=>  doc[q] == doc[k] and (q >= k or (span[q] > 0 and span[q] == span[k]))

GPUs run it through FlexAttention with a block mask over the flattened batch, CPUs through SDPA: with one dense mask
where rows are short (as GPUs do where the batch is no longer than a block), where they are long piece by piece: what a
visual span attends to is all there is up to its end, which needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

# Side of FlexAttention's blocks, in tokens.
BLOCK = 128
# Rows from which slicing pieces out beats attending to a whole row of documents, on a CPU.
_LONG_ROW = 512


class Piece(NamedTuple):
    """A visual span, or the text between two: queries start to stop, which see keys from their document's `first` on.

    A span sees all keys up to `stop`; text is causal, with `mask`, additive (1, 1, stop - start, stop - first), unless it
    begins its document.
    """

    first: int
    start: int
    stop: int
    causal: bool
    mask: Tensor | None


@dataclass(frozen=True)
class DocumentMask:
    """The documents of a flattened batch, in pieces."""

    pieces: list[Piece]

    def of(self, rows: Tensor) -> DocumentMask:
        """Only the pieces that hold some of these rows (n,) of the flattened batch, in ascending order."""
        edges = torch.tensor([piece[1:3] for piece in self.pieces], dtype=torch.int64).reshape(len(self.pieces), 2)
        low, high = torch.searchsorted(rows, edges).unbind(1)
        return DocumentMask([piece for piece, some in zip(self.pieces, (low < high).tolist(), strict=True) if some])


Mask = Tensor | BlockMask | DocumentMask | None


def dense_mask(doc: Tensor, span: Tensor, queries: slice = slice(None)) -> Tensor:
    """Boolean (B, 1, Q, L) mask, True where the query position (row) may see the key position (column).

    doc, span: (B, L) int64, as in `sequence.Packed`; `queries` selects the rows, for decoding with a cache.
    """
    place = torch.arange(doc.shape[1], device=doc.device)
    causal = place[queries, None] >= place[None, :]
    same_span = (span[:, queries, None] > 0) & (span[:, queries, None] == span[:, None, :])
    same_doc = doc[:, queries, None] == doc[:, None, :]
    return (same_doc & (causal | same_span))[:, None]


def block_mask(doc: Tensor, span: Tensor) -> BlockMask:
    """FlexAttention's mask of (B, L) rows flattened to one of B*L: ids are unique in the batch, so no batch index.

    (A closure that indexes by batch while `B=None` silently gives every sample the first one's mask.) A document and a
    span are each in one piece, so which blocks attend follows from the ends of blocks: PyTorch's own
    `create_block_mask` looks at every pair of tokens.
    """
    doc, span = doc.reshape(-1).int(), span.reshape(-1).int()

    def omni(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (doc[q] == doc[k]) & ((q >= k) | ((span[q] > 0) & (span[q] == span[k])))

    # Pieces in order of their first token, which padding (negative ids) is not.
    piece = F.pad((doc[1:] != doc[:-1]).cumsum(0), (1, 0))
    missing = -len(doc) % BLOCK
    first, last = _ends(F.pad(piece, (0, missing), value=len(doc)))
    first_span, last_span = _ends(F.pad(span, (0, missing)))
    place = torch.arange(len(first), device=doc.device)
    # Keys before a query are seen where their last document goes on into its block, keys after it in a span of both.
    behind = first[:, None] <= last
    ahead = (last_span[:, None] > 0) & (last_span[:, None] == first_span)
    some = torch.where(place[:, None] >= place, behind, ahead)
    one, filled = first == last, (first_span == last_span) & (first_span > 0)
    whole = (place[:, None] > place) & one[:, None] & one & (first[:, None] == first)
    whole |= filled[:, None] & filled & (first_span[:, None] == first_span)
    return BlockMask.from_kv_blocks(*_listed(some & ~whole), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=omni,
                                    seq_lengths=(len(doc), len(doc)))


def _ends(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The ids of the first and of the last token of each block."""
    blocks = ids.view(-1, BLOCK)
    return blocks[:, 0], blocks[:, -1]


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has in a boolean (n, n), and which, these first: (1, 1, n), (1, 1, n, n)."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


def additive(mask: Tensor) -> Tensor:
    """0 where a boolean mask is True, else -inf, float32: what SDPA would make of it, and keep, in every layer."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)


def document_mask(doc: Tensor, span: Tensor) -> DocumentMask:
    """The pieces of the documents of (B, L) rows; padding (doc <= 0) belongs to none."""
    ids = torch.stack([doc.reshape(-1), span.reshape(-1).clamp(min=0)])
    (runs, sizes), pieces, before, first, start = torch.unique_consecutive(ids, return_counts=True, dim=1), [], 0, 0, 0
    for number, visual, size in zip(*runs.tolist(), sizes.tolist(), strict=True):
        if number != before:
            before, first = number, start
        if number > 0:
            causal = not visual and start == first
            mask = None if visual or causal else _causal(start - first, size, doc.device)
            pieces.append(Piece(first, start, start + size, causal, mask))
        start += size
    return DocumentMask(pieces)


def _causal(before: int, size: int, device: torch.device) -> Tensor:
    """The additive mask of `size` queries that see `before` keys and, of as many more, those up to themselves."""
    return additive(torch.ones(size, before + size, dtype=torch.bool, device=device).tril(before))[None, None]


def make_mask(doc: Tensor, span: Tensor) -> Mask:
    """The mask that attention on this device, over rows of this length, wants."""
    if doc.is_cuda and doc.numel() >= BLOCK:  # Less than a block, FlexAttention has no kernel for.
        return block_mask(doc, span)
    return document_mask(doc, span) if doc.shape[1] >= _LONG_ROW else additive(dense_mask(doc, span))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None = None) -> Tensor:
    """Attention of q (B, H, Q, E) over k, v (B, H', L, E), H a multiple of H' (grouped queries); (B, H, Q, E).

    Without a mask every query sees every key.
    """
    if isinstance(mask, BlockMask):
        # In a compiled block it is compiled with the block.
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex
        out = flex(_flatten(q), _flatten(k), _flatten(v), block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return _unflatten(out, q)
    if torch.bfloat16 in (q.dtype, k.dtype, v.dtype) and not q.is_cuda:
        # On CPUs the backward pass of attention in bf16 takes three times as long as in fp32.
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), mask, scale).to(q.dtype)
    if isinstance(mask, DocumentMask):
        return _unflatten(_attend_pieces(_flatten(q), _flatten(k), _flatten(v), mask, scale), q)
    return _sdpa(q, k, v, mask, scale)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, causal: bool = False) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.is_cuda:
        # On GPUs the kernels that take a mask know no grouped queries.
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale,
                                          enable_gqa=q.shape[1] != k.shape[1])


def _flatten(x: Tensor) -> Tensor:
    """(B, H, L, E) to (1, H, B*L, E)."""
    return x.transpose(0, 1).flatten(1, 2)[None]


def _unflatten(out: Tensor, like: Tensor) -> Tensor:
    return out[0].unflatten(1, (like.shape[0], like.shape[2])).transpose(0, 1)


def _attend_pieces(q: Tensor, k: Tensor, v: Tensor, mask: DocumentMask, scale: float | None) -> Tensor:
    parts, end = [], 0
    for first, start, stop, causal, own in mask.pieces:
        if end < start:
            parts.append(q[:, :, end:start] * 0)
        parts.append(_sdpa(q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], own, scale, causal))
        end = stop
    return torch.cat([*parts, q[:, :, end:] * 0], 2)


# Only the compiled kernel skips blocks; the eager one materialises all scores.
_compiled_flex = torch.compile(flex_attention, dynamic=False)


def _omni_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None,
                    scaling: float | None = None, *, omni_mask: Mask, **_: object) -> tuple[Tensor, None]:
    return attend(query, key, value, omni_mask, scaling).transpose(1, 2).contiguous(), None


def _full_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None,
                    scaling: float | None = None, **_: object) -> tuple[Tensor, None]:
    return attend(query, key, value, None, scaling).transpose(1, 2).contiguous(), None


# The names under which any Hugging Face model runs this attention: a causal LM, given `omni_mask` in its call, and a
# transformer whose tokens all see one another.
OMNI, FULL = "omni", "full"
AttentionInterface.register(OMNI, _omni_attention)
AttentionInterface.register(FULL, _full_attention)
