"""Omni-attention (section 3.1): causal, and full inside each visual span; one mask object for every layer of a step.

    attend(q, k)  <=>  doc[q] == doc[k] and (q >= k or (span[q] > 0 and span[q] == span[k]))

GPUs run it through FlexAttention with a block mask over the flattened batch, CPUs through SDPA with a dense mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

Mask = Tensor | BlockMask


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

    (A closure that indexes by batch while `B=None` silently gives every sample the first one's mask.)
    """
    doc, span = doc.reshape(-1).int(), span.reshape(-1).int()

    def omni(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (doc[q] == doc[k]) & ((q >= k) | ((span[q] > 0) & (span[q] == span[k])))

    return create_block_mask(omni, B=None, H=None, Q_LEN=len(doc), KV_LEN=len(doc), device=str(doc.device))


def make_mask(doc: Tensor, span: Tensor) -> Mask:
    """The mask that this device's attention wants."""
    return block_mask(doc, span) if doc.is_cuda else dense_mask(doc, span)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None = None) -> Tensor:
    """Attention of q (B, H, Q, E) over k, v (B, H', L, E), H a multiple of H' (grouped queries); (B, H, Q, E)."""
    if isinstance(mask, BlockMask):
        def flat(x: Tensor) -> Tensor:
            return x.transpose(0, 1).flatten(1, 2)[None]

        out = _flex()(flat(q), flat(k), flat(v), block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out[0].unflatten(1, (q.shape[0], q.shape[2])).transpose(0, 1)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


_compiled = None


def _flex():
    # Only the compiled kernel skips blocks; the eager one materialises all scores.
    global _compiled
    if _compiled is None:
        _compiled = torch.compile(flex_attention, dynamic=False)
    return _compiled


def _omni_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask,
                    scaling: float | None = None, **_: object) -> tuple[Tensor, None]:
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


# The name under which any Hugging Face causal LM runs this attention.
OMNI = "omni"
AttentionInterface.register(OMNI, _omni_attention)
