"""The Wan 2.1 VAE: pictures and clips to normalised latents and back, frozen (section 3.1).

One frame goes through 2D convolutions. A causal 3D convolution sees zeros in the past of the first frame, so
there it equals a 2D convolution with the last temporal slice of its kernel, and temporal resampling does
nothing: 2.86 times fewer FLOPs for an encode, equal within 1e-6.
Shapes: B batch, T frames, H, W pixels; t = 1 + (T - 1)//4, h = H/8, w = W/8 latent.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
    WanUpBlock,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from showo2.tiny import resolve

SPATIAL = 8
CHANNELS = 16
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "Wan2.1_VAE.pth")


class WanVAE:
    """Frozen encoder and decoder. Weights are float32 unless `dtype` says else; latents are always float32.

    latent_mean, latent_std: (16,) float32. weights_hash: 128-bit hex hash of stored weights and statistics.
    """

    def __init__(self, network: AutoencoderKLWan, weights_hash: str):
        self.network = network.eval().requires_grad_(False)
        self.weights_hash = weights_hash
        self.latent_mean = torch.tensor(network.config.latents_mean, dtype=torch.float32)
        self.latent_std = torch.tensor(network.config.latents_std, dtype=torch.float32)

    @classmethod
    def from_pretrained(cls, spec: str, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu") -> WanVAE:
        """Load a diffusers folder, the released `Wan2.1_VAE.pth`, a `tiny:` name or Hub id, no pickles.

        Raises FileNotFoundError where there are no weights, ValueError where they are of another network.
        """
        file, config = _find(resolve(spec))
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, "cpu", weights_only=True)
        if "encoder.conv1.weight" in state:
            state = convert_wan_vae_to_diffusers(state)
        if "encoder.conv_in.weight" not in state:
            raise ValueError(f"{file} holds no Wan VAE: the tensor encoder.conv_in.weight is missing")
        config = config or {"base_dim": state["encoder.conv_in.weight"].shape[0]}
        with torch.device("meta"):
            network = AutoencoderKLWan.from_config(config)
        if network.config.is_residual or network.config.z_dim != CHANNELS:
            raise ValueError(f"{file} is no Wan 2.1 VAE of {CHANNELS} channels; Show-o2 uses Wan2.1_VAE.pth")
        digest = _hash(state, network.config)
        state = {name: tensor.to(device, dtype) for name, tensor in state.items()}
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit a Wan 2.1 VAE: {error}") from error
        return cls(network, digest)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.device

    @cached_property
    def _encoder(self) -> nn.Module:
        e = self.network.encoder
        layers = [e.conv_in, *e.down_blocks, e.mid_block, e.norm_out, e.nonlinearity, e.conv_out]
        return _channels_last([*layers, self.network.quant_conv])

    @cached_property
    def _decoder(self) -> nn.Module:
        d = self.network.decoder
        layers = [d.conv_in, d.mid_block, *d.up_blocks, d.norm_out, d.nonlinearity, d.conv_out]
        return _channels_last([self.network.post_quant_conv, *layers])

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (v.to(self.device).view(1, -1, 1, 1, 1) for v in (self.latent_mean, self.latent_std))
        return mean, std

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> normalised mean and raw log-variance, each (B, 16, t, h, w) float32.

        Raises ValueError for sides that 8 does not divide and for T that is not 1 + 4k.
        """
        if pixels.dim() != 5 or any(side % SPATIAL for side in pixels.shape[3:]) or pixels.shape[2] % 4 != 1:
            raise ValueError(f"pixels of shape {tuple(pixels.shape)}: need (B, 3, 1 + 4k, H, W), "
                             f"H and W multiples of {SPATIAL}")
        pixels = pixels.to(self.device, self.network.dtype)
        if pixels.shape[2] == 1:
            raw = self._encoder(pixels[:, :, 0].contiguous(memory_format=torch.channels_last))[:, :, None]
        else:
            raw = self.network._encode(pixels)
        mu, logvar = raw.float().chunk(2, dim=1)
        mean, std = self._statistics()
        return (mu - mean) / std, logvar.clamp(-30, 20)

    def encode(self, pixels: Tensor, sample: torch.Generator | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> normalised latents (B, 16, t, h, w) float32: the posterior's mean.

        With a generator in `sample`, noise is added as the released code does: exp(0.5 logvar) eps AFTER
        normalising, not divided by the latent's deviation.
        """
        latents, logvar = self.moments(pixels)
        if sample is None:
            return latents
        noise = torch.randn(latents.shape, generator=sample, device=sample.device).to(latents.device)
        return latents + torch.exp(0.5 * logvar) * noise

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, 16, t, h, w) -> pixels (B, 3, T, H, W) float32, clamped to [-1, 1]."""
        mean, std = self._statistics()
        raw = (latents.to(self.device, torch.float32) * std + mean).to(self.network.dtype)
        if raw.shape[2] == 1:
            pixels = self._decoder(raw[:, :, 0].contiguous(memory_format=torch.channels_last))[:, :, None]
        else:
            pixels = self.network._decode(raw).sample
        return pixels.float().clamp(-1, 1)


def _channels_last(layers: list[nn.Module]) -> nn.Module:
    """The single-frame network of `layers`; channels last, which halves a convolution's time on a CPU."""
    return nn.Sequential(*map(_flat, layers)).eval().to(memory_format=torch.channels_last)


class _Norm(nn.Module):
    """Root-mean-square norm over the channels of (B, C, H, W), in float32."""

    def __init__(self, norm: WanRMS_norm):
        super().__init__()
        self.gain = nn.Parameter(norm.gamma.detach().reshape(-1, 1, 1) * norm.scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * wide.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt()).to(x.dtype) * self.gain


class _Residual(nn.Module):
    def __init__(self, block: WanResidualBlock):
        super().__init__()
        steps = [block.norm1, block.nonlinearity, block.conv1, block.norm2, block.nonlinearity, block.conv2]
        self.body = nn.Sequential(*map(_flat, steps))
        self.shortcut = _flat(block.conv_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class _Attention(nn.Module):
    """Single-head attention over the positions of one frame."""

    def __init__(self, block: WanAttentionBlock):
        super().__init__()
        self.norm, self.to_qkv, self.proj = _flat(block.norm), block.to_qkv, block.proj

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(*(part[:, None] for part in qkv.chunk(3, dim=-1)))
        return x + self.proj(mixed[:, 0].transpose(1, 2).reshape(x.shape))


def _flat(module: nn.Module) -> nn.Module:
    """What `module` does to a first frame, as a module over (B, C, H, W)."""
    if isinstance(module, WanCausalConv3d):
        return _flat_convolution(module)
    if isinstance(module, WanRMS_norm):
        return _Norm(module)
    if isinstance(module, WanResidualBlock):
        return _Residual(module)
    if isinstance(module, WanAttentionBlock):
        return _Attention(module)
    if isinstance(module, WanResample):
        return module.resample
    if isinstance(module, WanMidBlock):
        first, *rest = module.resnets
        pairs = (layer for pair in zip(module.attentions, rest, strict=True) for layer in pair)
        return nn.Sequential(*map(_flat, [first, *pairs]))
    if isinstance(module, WanUpBlock):
        return nn.Sequential(*map(_flat, [*module.resnets, *(module.upsamplers or ())]))
    if isinstance(module, nn.Identity | nn.SiLU):
        return module
    raise TypeError(f"{type(module).__name__} has no single-frame form: diffusers has changed its Wan VAE")


def _flat_convolution(module: WanCausalConv3d) -> nn.Conv2d:
    kernel = module.weight.detach()[:, :, -1].contiguous()
    _, rows, columns = module.kernel_size
    left, _, top, *_ = module._padding
    with torch.device("meta"):
        flat = nn.Conv2d(module.in_channels, module.out_channels, (rows, columns), module.stride[1:],
                         padding=(int(top), int(left)), dtype=kernel.dtype)
    flat.weight = nn.Parameter(kernel, requires_grad=False)
    flat.bias = module.bias
    return flat


def _find(spec: str) -> tuple[Path, dict[str, Any] | None]:
    """The weights file of `spec` and its diffusers configuration (None: the released file has none)."""
    path = Path(spec)
    if path.is_file():
        return path, None
    folder = path if path.is_dir() else _download(spec)
    if (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    for name in _WEIGHTS:
        if (folder / name).is_file():
            released = name == _WEIGHTS[-1]
            return folder / name, None if released else AutoencoderKLWan.load_config(folder)
    known = ", ".join(_WEIGHTS)
    raise FileNotFoundError(f"{spec} holds no VAE: expected one of {known} there or in its folder vae")


def _download(spec: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if spec.count("/") != 1 or spec.startswith((".", os.sep)):
        raise FileNotFoundError(f"no VAE at {spec}: no such file or folder, and not a Hub id (owner/name)")
    wanted = [pattern for name in (*_WEIGHTS, "config.json") for pattern in (name, f"vae/{name}")]
    try:
        return Path(snapshot_download(spec, allow_patterns=wanted))
    except (OSError, ValueError, HFValidationError) as error:
        raise FileNotFoundError(f"no VAE at {spec}: no such folder, nor on the Hub ({error})") from error


def _hash(state: dict[str, Tensor], config: Any) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    digest.update(repr((tuple(config.latents_mean), tuple(config.latents_std))).encode())
    return digest.hexdigest()


def center_box(width: int, height: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the largest centred box with the aspect of `size` = (H, W)."""
    target_height, target_width = size
    scale = min(width / target_width, height / target_height)
    box_width = min(width, max(1, round(target_width * scale)))
    box_height = min(height, max(1, round(target_height * scale)))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def center_crop_resize(image: Image.Image, size: tuple[int, int], original: tuple[int, int] | None = None,
                       ) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Resize the largest centred box of the target's aspect (bicubic, antialiased) to `size` = (H, W).

    `original`: (width, height) of the whole picture where `image` was decoded at a smaller scale. Returns an
    RGB picture and the box in the original.
    """
    original = original or image.size
    box = center_box(*original, size)
    across, down = image.width / original[0], image.height / original[1]
    left, top, right, bottom = box
    scaled = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC, box=scaled), box


def to_pixels(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (n, 3, 1, H, W) float32 in [-1, 1]."""
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2)[:, :, None].float() / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> RGB picture."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
