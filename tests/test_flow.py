"""Flow matching as pure functions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from showo2 import flow


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_tokens_are_consecutive_pixels_and_return(n, frames, h, w):
    latents = torch.randn(n, 16, frames, 2 * h, 2 * w)
    tokens = flow.to_tokens(latents)
    assert tokens.shape == (n, frames * h * w, 64)
    pixels = latents.permute(0, 2, 3, 4, 1).reshape(n, -1, 16)
    assert torch.equal(tokens[:, 0], pixels[:, :4].flatten(1))
    assert torch.equal(flow.from_tokens(tokens, (frames, 2 * h, 2 * w)), latents)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_tokens_in_patch_order_are_what_the_model_reads(n, frames, h, w):
    latents = torch.randn(n, 16, frames, 2 * h, 2 * w)
    tokens = flow.to_tokens(latents, order="patch")
    patches = torch.nn.functional.unfold(latents.transpose(1, 2).flatten(0, 1), 2, stride=2)
    patches = patches.view(n, frames, 16, 4, h * w).permute(0, 1, 4, 3, 2).reshape(n, frames * h * w, 64)
    assert torch.equal(tokens, patches)
    assert torch.equal(flow.from_tokens(tokens, (frames, 2 * h, 2 * w), order="patch"), latents)


def test_interpolation_ends():
    x1, x0 = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 4, 1, 2, 2)
    mixed = flow.interpolate(x1, x0, torch.tensor([1.0, 0.0]))
    assert torch.equal(mixed[0], x1[0]) and torch.equal(mixed[1], x0[1])


def test_training_times_lean_toward_noise():
    u = torch.linspace(-3, 3, 101)
    t = flow.training_time(u)
    assert (t.diff() > 0).all() and 0 < t[0] and t[-1] < 1
    assert (t < torch.sigmoid(u)).all()


def test_grid_and_guidance():
    grid = flow.sampling_times(10)
    assert grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()
    with pytest.raises(ValueError, match="points=1"):
        flow.sampling_times(1)
    null, text = torch.zeros(3), torch.ones(3)
    assert torch.equal(flow.guide(null, text, 5.0), torch.full((3,), 5.0))
