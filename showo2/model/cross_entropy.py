"""Cross-entropy through a language model's head without the logits of a whole sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of logits that exist at once: 0.3 GB in float32 for a vocabulary of 151,669.
CHUNK = 512


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are made while a chunk's logits exist, so nothing of the vocabulary's width is kept or made again."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        to_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, y = hidden[rows], labels[rows]
            log_p = F.linear(h, weight).float().log_softmax(-1)
            total += F.nll_loss(log_p, y, reduction="sum")
            error = log_p.exp_()
            error[torch.arange(len(y), device=y.device), y] -= 1
            error = error.to(weight.dtype)
            if to_hidden is not None:
                torch.mm(error, weight, out=to_hidden[rows])
            if to_weight is not None:
                to_weight += error.T @ h
        ctx.gradients = to_hidden, None if to_weight is None else to_weight.to(weight.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        to_hidden, to_weight = (None if g is None else g * grad.to(g.dtype) for g in ctx.gradients)
        return to_hidden, to_weight, None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = CHUNK) -> Tensor:
    """Summed cross-entropy, float32 scalar, of labels (n,) under softmax(hidden @ weight.T).

    hidden: (n, D); weight: (V, D); `chunk` rows of logits exist at a time, in float32.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, chunk)
