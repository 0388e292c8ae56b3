"""What the released code does wrong, on request: published numbers may carry these effects. Off everywhere else."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from showo2.flow import PATCH
from showo2.sequence import Packed, Visuals


def overwrite_bos(packed: Packed, rows: Tensor, t: Tensor) -> Packed:
    """Samples with fewer images than the maximum lost their [BOS] embedding to a padding image's time token.

    rows: (m,) int64 rows of the batch, t: (m,) the padding images' times. A medium of no frames is a time token alone.
    """
    context = packed.ids.shape[1]
    empty = torch.zeros(len(rows), packed.visuals[0].latents.shape[1], 0, PATCH, PATCH, device=t.device)
    nothing = torch.zeros(len(rows), dtype=torch.bool, device=t.device)
    start = rows * context
    return replace(packed, visuals=[*packed.visuals, Visuals(empty, empty, t, nothing, start, start)])


def shift_spans(packed: Packed) -> Packed:
    """Understanding was run with every span one position late: without its time token, with its [EOI]."""
    span = torch.zeros_like(packed.span)
    span[:, 1:] = packed.span[:, :-1]
    return replace(packed, span=span)
