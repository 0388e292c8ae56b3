import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from showo2.vae import WanVAE, center_box, center_crop_resize, tiled, to_image, to_pixels

GOLDEN = Path(__file__).parent / "golden" / "vae"


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return WanVAE.from_pretrained(str(GOLDEN / "official_state_dict.safetensors"))


def test_released_statistics(vae):
    stored = json.loads((GOLDEN / "golden.json").read_text())
    assert torch.allclose(vae.latent_mean, torch.tensor(stored["mean"]))
    assert torch.allclose(vae.latent_std, torch.tensor(stored["std"]))


@pytest.mark.parametrize("shape", [(1, 3, 1, 32, 32), (3, 3, 1, 40, 24)])
def test_single_frame_equals_3d_path(vae, shape):
    pixels = torch.rand(shape) * 2 - 1
    want = vae.network.encode(pixels).latent_dist.mean
    mean, std = vae.statistics()
    latents = vae.encode(pixels)
    assert torch.allclose(latents * std + mean, want, atol=1e-5, rtol=0)
    assert torch.allclose(vae.decode(latents), vae.network.decode(want).sample, atol=1e-5, rtol=0)


def test_first_latent_frame_of_a_clip_is_that_of_its_first_picture(vae):
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.allclose(vae.encode(clip)[:, :, :1], vae.encode(clip[:, :, :1]), atol=1e-5, rtol=0)


def test_compiled_it_gives_the_same_latents(vae, monkeypatch):
    # Generating code for a CPU takes a minute; capturing the graph is what can go wrong here.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = WanVAE.from_pretrained(str(GOLDEN / "official_state_dict.safetensors"))
    compiled.compile()
    pixels = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    assert torch.allclose(compiled.encode(pixels), vae.encode(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 5])
def test_batch_equals_singles(vae, frames):
    pixels = torch.rand(3, 3, frames, 16, 16) * 2 - 1
    latents = vae.encode(pixels)
    singles = torch.cat([vae.encode(one) for one in pixels.split(1)])
    assert torch.allclose(latents, singles, atol=1e-5, rtol=0)
    decoded = torch.cat([vae.decode(one) for one in latents.split(1)])
    assert torch.allclose(vae.decode(latents), decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("height, width, tile", [(7, 9, 4), (4, 4, 4), (3, 11, 8), (5, 8, None)])
def test_tiles_of_a_local_map_are_the_whole(height, width, tile):
    """What sees only its own place cannot tell; every place is covered, and the weights add up to one."""
    x = torch.rand(2, 3, 1, height, width)
    seen = []

    def upsampled(piece: torch.Tensor) -> torch.Tensor:
        seen.append(piece.shape[3:])
        return piece.repeat_interleave(8, 3).repeat_interleave(8, 4)

    assert torch.allclose(tiled(upsampled, x, tile, lambda n: 8 * n), upsampled(x), atol=1e-6)
    assert tile is None or max(max(size) for size in seen[:-1]) <= tile


@pytest.mark.parametrize("frames", [1, 5])
def test_tiles_look_like_the_whole(frames):
    """On a trained VAE: below the noise that its own reconstruction has."""
    whole, cut = (WanVAE.from_pretrained("tiny:vae", tile=tile) for tile in (None, 64))
    ramp = torch.linspace(-1, 1, 96)
    pixels = torch.stack([ramp[:, None] * ramp, ramp[None].expand(96, 96), -ramp[:, None].expand(96, 96)])
    pixels = pixels[None, :, None].expand(1, 3, frames, 96, 96).contiguous()
    latents = whole.encode(pixels)
    assert (cut.encode(pixels) - latents).square().mean() < 0.05 * latents.var()
    assert (cut.decode(latents) - whole.decode(latents)).abs().mean() < 0.05
    assert torch.equal(cut.encode(pixels[..., :64, :64]), whole.encode(pixels[..., :64, :64]))


def test_tile_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="tile=40: use a multiple of 32"):
        WanVAE.from_pretrained("tiny:vae", tile=40)


def test_single_frame_needs_at_most_36_percent_of_the_flops(vae):
    pixels = torch.rand(1, 3, 1, 64, 64)
    with FlopCounterMode(display=False) as reference:
        vae.network.encode(pixels)
    with FlopCounterMode(display=False) as ours:
        vae.encode(pixels)
    assert ours.get_total_flops() <= 0.36 * reference.get_total_flops()


def test_sampling_is_reproducible_and_has_the_released_noise(vae):
    pixels = torch.rand(1, 3, 1, 16, 16)
    first, second = (vae.encode(pixels, torch.Generator().manual_seed(3)) for _ in range(2))
    mean, logvar = vae.moments(pixels)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, second)
    assert torch.equal(first, mean + torch.exp(0.5 * logvar) * noise)


def test_formats_load_alike(vae, tmp_path):
    vae.network.save_pretrained(tmp_path / "diffusers" / "vae")
    torch.save(load_file(GOLDEN / "official_state_dict.safetensors"), tmp_path / "Wan2.1_VAE.pth")
    pixels = torch.rand(1, 3, 1, 16, 16)
    folder = tmp_path / "diffusers"
    for spec in (tmp_path, tmp_path / "Wan2.1_VAE.pth", folder, folder / "vae"):
        other = WanVAE.from_pretrained(str(spec))
        assert torch.equal(other.encode(pixels), vae.encode(pixels))
        assert other.weights_hash == vae.weights_hash


def test_hash_follows_weights_and_statistics(vae, tmp_path):
    state = load_file(GOLDEN / "official_state_dict.safetensors")
    state["conv1.bias"][0] += 1
    save_file(state, tmp_path / "other.safetensors")
    assert WanVAE.from_pretrained(str(tmp_path / "other.safetensors")).weights_hash != vae.weights_hash
    network = AutoencoderKLWan(base_dim=8, latents_mean=[0.0] * 16)
    network.load_state_dict(vae.network.state_dict())
    network.save_pretrained(tmp_path / "statistics")
    assert WanVAE.from_pretrained(str(tmp_path / "statistics")).weights_hash != vae.weights_hash


def test_what_is_no_vae_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no VAE at ./nowhere"):
        WanVAE.from_pretrained("./nowhere")
    with pytest.raises(FileNotFoundError, match="holds no VAE: expected one of"):
        WanVAE.from_pretrained(str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no Wan VAE"):
        WanVAE.from_pretrained(str(tmp_path / "x.safetensors"))
    state = load_file(GOLDEN / "official_state_dict.safetensors")
    del state["conv1.bias"]
    save_file(state, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="does not fit a Wan 2.1 VAE: [^$]*quant_conv.bias"):
        WanVAE.from_pretrained(str(tmp_path / "y.safetensors"))


def test_pickles_are_refused(tmp_path):
    torch.save({"encoder.conv1.weight": Path("/")}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        WanVAE.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 3, 1, 20, 16), (1, 3, 4, 16, 16)])
def test_shapes_that_do_not_fit(vae, shape):
    with pytest.raises(ValueError, match="need .B, 3, 1 . 4k, H, W."):
        vae.encode(torch.zeros(shape))


def test_half_precision(vae):
    half = WanVAE.from_pretrained(str(GOLDEN / "official_state_dict.safetensors"), torch.bfloat16)
    pixels = torch.rand(1, 3, 1, 16, 16)
    assert half.encode(pixels).dtype == torch.float32 and half.weights_hash == vae.weights_hash
    assert torch.allclose(half.encode(pixels), vae.encode(pixels), atol=0.1)


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), h=st.integers(1, 64), w=st.integers(1, 64))
def test_box_is_centred_inside_and_has_the_aspect(width, height, h, w):
    left, top, right, bottom = center_box(width, height, (8 * h, 8 * w))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert right - left == width or bottom - top == height
    assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
    if min(right - left, bottom - top) >= 1:
        assert abs((right - left) * h - (bottom - top) * w) <= max(h, w)


def test_crop_keeps_the_middle():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 200
    image, box = center_crop_resize(Image.fromarray(picture), (64, 64))
    assert box == (100, 0, 200, 100) and image.size == (64, 64)
    assert (np.asarray(image)[:, 2:-2] == 200).all()


def test_pictures_and_pixels_are_inverse():
    picture = Image.fromarray(np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3))
    pixels = to_pixels([picture, picture])
    assert pixels.shape == (2, 3, 1, 8, 16) and pixels.abs().max() <= 1
    assert np.array_equal(np.asarray(to_image(pixels[1, :, 0])), np.asarray(picture))
