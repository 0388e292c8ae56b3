"""Flow matching as Show-o2 uses it (section 3.1, equations 2 and 3): t = 1 is clean data, t = 0 is noise."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

# Side of a visual token, in latent pixels.
PATCH = 2
# What the flow head's output token k holds of a latent: "released" is four consecutive pixels of the row-major
# latent, as the released weights were trained; "patch" is the square patch that the model reads as input token k.
Order = Literal["released", "patch"]

# The released trainer computes the shift for a 432x432 picture (729 tokens and its time token) whatever it trains on.
SHIFT_TOKENS = 730


def interpolate(x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """x_t = t*x1 + (1-t)*x0 for latents (n, ...) and times (n,)."""
    t = t.to(x1.dtype).view(-1, *[1] * (x1.dim() - 1))
    return t * x1 + (1 - t) * x0


def quarter(t: Tensor) -> Tensor:
    """Index 0 to 3 of the quarter of [0, 1] that each time lies in, int64 of t's shape."""
    return (t * 4).long().clamp(max=3)


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


def to_tokens(latents: Tensor, order: Order = "released") -> Tensor:
    """Latents (n, C, T, h, w) to flow-head tokens (n, T*h*w/4, 4*C), pixels first, channels last.

    In the released order the head must carry every pixel's noise from other input tokens to each output token: weights
    of that order mean nothing in the other, and a new model learns sooner without it (docs/log.md).
    """
    n, c, t, h, w = latents.shape
    if order == "patch":
        latents = latents.reshape(n, c, t, h // PATCH, PATCH, w // PATCH, PATCH).transpose(4, 5)
    return latents.reshape(n, c, t * h * w).transpose(1, 2).reshape(n, t * h * w // PATCH**2, PATCH**2 * c)


def from_tokens(tokens: Tensor, shape: tuple[int, int, int], order: Order = "released") -> Tensor:
    """Inverse of `to_tokens`: tokens (n, N, 4*C) to latents (n, C, T, h, w) for `shape` = (T, h, w)."""
    t, h, w = shape
    n, c = len(tokens), tokens.shape[2] // PATCH**2
    pixels = tokens.reshape(n, t * h * w, c).transpose(1, 2)
    if order == "patch":
        pixels = pixels.reshape(n, c, t, h // PATCH, w // PATCH, PATCH, PATCH).transpose(4, 5)
    return pixels.reshape(n, c, t, h, w)
