"""Flow matching as Show-o2 uses it (section 3.1, equations 2 and 3): t = 1 is clean data, t = 0 is noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The released trainer computes the shift for a 432x432 picture (729 tokens and its time token) whatever it trains on.
SHIFT_TOKENS = 730


def interpolate(x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """x_t = t*x1 + (1-t)*x0 for latents (n, ...) and times (n,)."""
    t = t.to(x1.dtype).view(-1, *[1] * (x1.dim() - 1))
    return t * x1 + (1 - t) * x0


def training_time(u: Tensor, tokens: int = SHIFT_TOKENS) -> Tensor:
    """Training times from standard normal `u`: logit-normal, then shifted toward noise by the sequence length.

    mu = 0.5 + 0.65/3840 * (tokens - 256) and s = e^mu; t' = 1 - s / (s + 1/(1-t) - 1).
    """
    s = math.exp(0.5 + 0.65 / 3840 * (tokens - 256))
    t = torch.sigmoid(u)
    return 1 - s / (s + (1 / (1 - t) - 1))


def sampling_times(points: int, shift: float = 3.0) -> Tensor:
    """The ODE's time grid, float32 (points,): `points` points are `points - 1` Euler steps."""
    if points < 2:
        raise ValueError(f"points={points}: a time grid needs at least its two ends; use 2 or more")
    t = torch.linspace(0, 1, points)
    return t / (t + shift - shift * t)


def guide(v_null: Tensor, v_text: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: v_null + g * (v_text - v_null)."""
    return v_null + guidance * (v_text - v_null)


def to_tokens(latents: Tensor, patch: int = 2) -> Tensor:
    """Latents (n, C, T, h, w) to flow-head tokens (n, T*h*w/patch^2, patch^2*C).

    Output token k is `patch^2` consecutive pixels of the row-major latent, not the k-th square patch that the model
    reads as input token k: the released weights were trained so, and their outputs mean nothing in any other order.
    """
    n, c, t, h, w = latents.shape
    return latents.permute(0, 2, 3, 4, 1).reshape(n, t * h * w // patch**2, patch**2 * c)


def from_tokens(tokens: Tensor, shape: tuple[int, int, int], patch: int = 2) -> Tensor:
    """Inverse of `to_tokens`: tokens (n, N, patch^2*C) to latents (n, C, T, h, w) for `shape` = (T, h, w)."""
    t, h, w = shape
    n, _, width = tokens.shape
    return tokens.reshape(n, t, h, w, width // patch**2).permute(0, 4, 1, 2, 3)
