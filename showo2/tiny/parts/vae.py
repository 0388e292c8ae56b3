"""The Wan VAE: 8x8 latents of 16 channels for a picture of 64x64, trained on single frames.

Of a causal 3D convolution one frame sees only the last temporal slice, so training runs it as a 2D convolution (2.9
times fewer FLOPs), and most of it sees quarters of pictures, since edges are all there is to learn. The other slices start and stay zero and the temporal resampling copies frames: on a video
the VAE works frame by frame.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, WanRMS_norm
from torch import Tensor

from showo2.tiny.parts.common import SIZE, batches, draw_scenes, fit, halve, pictures, share, to_pixels
from showo2.tiny.words import BACKGROUND, COLOURS
from showo2.tiny.world import Object, Scene

_BATCH = 16  # quarters of pictures, or half as many whole ones


@dataclass(frozen=True)
class Stage:
    """A stretch of training with a schedule of its own; its last fifth sees whole pictures.

    kl: weight beside the error of a pixel value. recolour: draw in colours of all kinds. A VAE that knows eight colours
    only codes some of them so near each other that a flow model does not tell blue from cyan (docs/log.md).
    noise: the most that is added to latents before they are decoded, in their standard deviations: a small flow model
    misses them by some tenths, and what is drawn must bear that.
    """

    steps: int
    lr: float
    kl: float
    recolour: bool = False
    noise: float = 0.0


STAGES = (
    Stage(5_000, 4e-3, 0.03, recolour=True),
    Stage(1_500, 3e-3, 0.01),
    Stage(3_000, 2e-3, 0.01, noise=0.8),
)


def build() -> AutoencoderKLWan:
    """An untrained VAE with frame-wise convolutions."""
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 8], num_res_blocks=1)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d):
                module.weight[:, :, :-1] = 0
            if isinstance(module, WanResample) and hasattr(module, "time_conv"):
                copies = module.time_conv.out_channels // module.time_conv.in_channels
                module.time_conv.weight[:, :, -1, 0, 0] = torch.eye(module.time_conv.in_channels).repeat(
                    copies, 1
                )
                module.time_conv.bias.zero_()
    return vae


@contextmanager
def single_frame() -> Iterator[None]:
    """Run every causal 3D convolution as the 2D convolution that it is for one frame, and norms in fewer passes."""
    originals = WanCausalConv3d.forward, WanRMS_norm.forward

    def flat(self: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        padding = (self._padding[2], self._padding[0])
        return F.conv2d(x[:, :, -1], self.weight[:, :, -1], self.bias, self.stride[1:], padding)[:, :, None]

    def norm(self: WanRMS_norm, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-12) * (self.gamma * self.scale)

    WanCausalConv3d.forward, WanRMS_norm.forward = flat, norm
    try:
        yield
    finally:
        WanCausalConv3d.forward, WanRMS_norm.forward = originals


def _quarters(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, 64, 64, 3) to (N, 32, 32, 3): of two random crops of each picture the one with more in it."""
    half = SIZE // 2
    crops = []
    for image in images:
        corners = rng.integers(0, half + 1, (2, 2))
        crops.append(max((image[y : y + half, x : x + half] for y, x in corners), key=np.std))
    return np.stack(crops)


def _recolour(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Swap the colour channels of each picture (N, H, W, 3), and fade it toward the background."""
    turned = np.stack([image[..., rng.permutation(3)] for image in images]).astype(np.float32)
    faded = BACKGROUND[0] + rng.uniform(0.4, 1.0, (len(images), 1, 1, 1)) * (turned - BACKGROUND[0])
    return faded.round().clip(0, 255).astype(np.uint8)


def train(folder: Path, effort: float = 1.0, seed: int = 1) -> None:
    """Train and save; `effort` scales the work."""
    torch.manual_seed(seed)
    images, vae = pictures(draw_scenes(share(12_000, effort), seed), seed), build()
    with single_frame():
        for stage in STAGES:
            _train_stage(vae, images, replace(stage, steps=round(stage.steps * effort)), seed)
        latents = encode(vae, images[:2000])
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist()
    )
    vae.save_pretrained(folder)
    halve(folder)


def _train_stage(vae: AutoencoderKLWan, images: np.ndarray, stage: Stage, seed: int) -> None:
    order, rng = batches(len(images), _BATCH, stage.steps, seed), np.random.default_rng(seed)

    def loss_of(step: int) -> Tensor:
        chosen = images[next(order)]
        shown = _quarters(chosen, rng) if step < 0.8 * stage.steps else chosen[: _BATCH // 2]
        pixels = to_pixels(_recolour(shown, rng) if stage.recolour else shown, noise=1.0)[:, :, None]
        posterior = vae.encode(pixels).latent_dist
        restored = vae._decode(_noised(posterior.sample(), stage.noise)).sample
        error = F.mse_loss(restored, pixels) + 0.1 * F.l1_loss(restored, pixels)
        # Nothing gets through an untrained VAE whose latents already cost something.
        kl = stage.kl * min(1.0, 5 * step / stage.steps) if stage.recolour else stage.kl
        return error + kl * posterior.kl().mean() / posterior.mean[0].numel()

    fit("vae", vae, stage.steps, stage.lr, loss_of)


def _noised(latents: Tensor, most: float) -> Tensor:
    """Latents (N, C, 1, h, w) with Gaussian noise, of each picture its own share of `most` standard deviations."""
    deviation = latents.detach().std((0, 2, 3, 4), keepdim=True)
    return latents + most * torch.rand(len(latents), 1, 1, 1, 1) * deviation * torch.randn_like(latents)


@torch.no_grad()
def encode(vae: AutoencoderKLWan, images: np.ndarray) -> Tensor:
    """(N, 64, 64, 3) uint8 to (N, 16, 8, 8) latent means, not normalised."""
    chunks = np.array_split(images, max(1, len(images) // 64))
    return torch.cat([vae.encode(to_pixels(chunk)[:, :, None]).latent_dist.mean[:, :, 0] for chunk in chunks])


@torch.no_grad()
def evaluate(folder: Path, samples: int = 256) -> dict[str, float]:
    """PSNR (dB) of held-out pictures through the stored VAE; moments of their normalised latents.

    nearest_colours: the smallest squared distance per element between latents of one circle in two colours.
    """
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32).eval()
    images = pictures(draw_scenes(samples, 90_001, held_out=True), 90_001, photographs=0.5)
    with single_frame():
        latents = encode(vae, images)
        restored = torch.cat([vae._decode(z[:, :, None]).sample[:, :, 0] for z in latents.split(64)])
    error = ((restored.clamp(-1, 1) - to_pixels(images)) / 2).square().mean((1, 2, 3))
    circles = [Scene((Object(colour, "circle", 0.3, 0.5, 0.15),)) for colour in COLOURS]
    with single_frame():
        coloured = encode(vae, pictures(circles, 0, photographs=0))
    mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    normal = (latents - mean) / std
    psnr = -10 * error.log10()
    coloured = ((coloured - mean) / std).flatten(1)
    return {
        "psnr_db": psnr.mean().item(),
        "psnr_worst_db": psnr.min().item(),
        "latent_mean": normal.mean().item(),
        "latent_std": normal.std().item(),
        "latent_kurtosis": (normal**4).mean().item(),
        "nearest_colours": (torch.pdist(coloured).square().min() / coloured.shape[1]).item(),
        "size_px": SIZE,
    }
