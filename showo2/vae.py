"""The Wan 2.1 VAE: pictures and clips to normalised latents and back, frozen (section 3.1).

One frame goes through 2D convolutions. A causal 3D convolution sees zeros in the past of the first frame, so
there it equals a 2D convolution with the last temporal slice of its kernel, and temporal resampling does
nothing: 2.86 times fewer FLOPs for an encode, equal within 1e-6.
Shapes: B batch, T frames, H, W pixels; t = 1 + (T - 1)//4, h = H/8, w = W/8 latent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from showo2.frame_vae import CHANNELS, load_frame_vae
from showo2.store import fetched
from showo2.tiny import resolve

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

SPATIAL, TEMPORAL = 8, 4
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "Wan2.1_VAE.pth")
# Of Wan 2.1, as its release states them; the weights file itself holds none.
_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
         0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "base_dim": 96, "decoder_base_dim": None, "z_dim": CHANNELS, "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_scales": [], "is_residual": False, "patch_size": None, "latents_mean": _MEAN,
    "latents_std": _STD,
}  # fmt: skip


class WanVAE:
    """Frozen encoder and decoder. Weights are float32 unless `dtype` says else; latents are always float32.

    latent_mean, latent_std: (16,) float32. weights_hash: 128-bit hex hash of stored weights and statistics.
    """

    def __init__(self, config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype = torch.float32,
                 device: str | torch.device = "cpu", tile: int | None = None):
        """`config` and `state`: a diffusers AutoencoderKLWan's. Raises ValueError where they do not fit.

        tile: side in pixels, a multiple of 32, of the squares that larger pictures are cut into, to fit in less memory;
        not exact, as the squares do not see one another. None: pictures stay whole.
        """
        if tile is not None and (tile < 32 or tile % 32):
            raise ValueError(f"tile={tile}: use a multiple of 32 pixels")
        self.config = _DEFAULTS | config
        if self.config["is_residual"] or self.config["patch_size"] or self.config["z_dim"] != CHANNELS:
            raise ValueError(f"not a Wan 2.1 VAE of {CHANNELS} channels; Show-o2 uses Wan2.1_VAE.pth")
        if self.config["attn_scales"]:
            raise ValueError(f"attn_scales are {self.config['attn_scales']}; the Wan 2.1 VAE has none")
        self._state = state
        self.dtype, self.device, self.tile = dtype, torch.device(device), tile
        self.latent_mean = torch.tensor(self.config["latents_mean"], dtype=torch.float32)
        self.latent_std = torch.tensor(self.config["latents_std"], dtype=torch.float32)
        self._frame = load_frame_vae(self.config, state).to(self.device, dtype)

    @classmethod
    def from_pretrained(cls, spec: str, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu", tile: int | None = None) -> WanVAE:
        """Load a diffusers folder, the released `Wan2.1_VAE.pth`, a folder's URL, a `tiny:` name or Hub id, no pickles.

        dtype of the weights; device; tile: see the constructor.

        Raises FileNotFoundError where there are no weights, ValueError where they are of another network.
        """
        file, config = _find(resolve(fetched(spec)))
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, "cpu", weights_only=True)
        if "encoder.conv1.weight" in state:
            from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

            state = convert_wan_vae_to_diffusers(state)
        if "encoder.conv_in.weight" not in state:
            raise ValueError(f"{file} holds no Wan VAE: the tensor encoder.conv_in.weight is missing")
        config = config or {"base_dim": state["encoder.conv_in.weight"].shape[0]}
        try:
            return cls(config, state, dtype, device, tile)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{file} does not fit a Wan 2.1 VAE: {error}") from error

    def compile(self) -> None:
        """Compile the way of pictures to latents: worth it on a GPU, for many pictures of few shapes."""
        self._frame.encode = torch.compile(self._frame.encode)  # type: ignore[method-assign]

    @cached_property
    def weights_hash(self) -> str:
        """See the class."""
        digest = xxhash.xxh3_128()
        for name in sorted(self._state):
            tensor = self._state[name].contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.view(torch.uint8).numpy().data)
        statistics = tuple(tuple(map(float, self.config[name])) for name in ("latents_mean", "latents_std"))
        digest.update(repr(statistics).encode())
        return digest.hexdigest()

    @cached_property
    def network(self) -> AutoencoderKLWan:
        """The 3D network, for clips."""
        # Six seconds of imports, which pictures do not need.
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        with torch.device("meta"):
            network = AutoencoderKLWan.from_config(self.config)
        state = {name: tensor.to(self.device, self.dtype) for name, tensor in self._state.items()}
        network.load_state_dict(state, assign=True)
        return network.eval().requires_grad_(False)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of raw latents, (1, 16, 1, 1, 1) float32."""
        mean, std = (v.to(self.device).view(1, -1, 1, 1, 1) for v in (self.latent_mean, self.latent_std))
        return mean, std

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> normalised mean and raw log-variance, each (B, 16, t, h, w) float32.

        Raises ValueError for sides that 8 does not divide and for T that is not 1 + 4k.
        """
        if pixels.dim() != 5 or any(side % SPATIAL for side in pixels.shape[3:]) or pixels.shape[2] % TEMPORAL != 1:
            raise ValueError(f"pixels of shape {tuple(pixels.shape)}: need (B, 3, 1 + 4k, H, W), "
                             f"H and W multiples of {SPATIAL}")
        pixels = pixels.to(self.device, self.dtype)
        raw = tiled(self._encode, pixels, self.tile, lambda pixel: pixel // SPATIAL)
        mu, logvar = raw.float().chunk(2, dim=1)
        mean, std = self.statistics()
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
        mean, std = self.statistics()
        raw = (latents.to(self.device, torch.float32) * std + mean).to(self.dtype)
        tile = None if self.tile is None else self.tile // SPATIAL
        return tiled(self._decode, raw, tile, lambda latent: latent * SPATIAL).float().clamp(-1, 1)

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._frame.encode(pixels[:, :, 0])[:, :, None] if pixels.shape[2] == 1 else self.network._encode(pixels)

    def _decode(self, raw: Tensor) -> Tensor:
        if raw.shape[2] == 1:
            return self._frame.decode(raw[:, :, 0])[:, :, None]
        return self.network._decode(raw).sample


def tiled(run: Callable[[Tensor], Tensor], x: Tensor, tile: int | None, scaled: Callable[[int], int]) -> Tensor:
    """`run` over squares of side `tile` of x (B, C, T, H, W), a quarter overlapping and faded into one another.

    scaled: a length in `x` to the one that it has in the result.
    """
    height, width = x.shape[3:]
    if tile is None or max(height, width) <= tile:
        return run(x)
    total = weights = torch.zeros(())
    for top in _starts(height, tile):
        for left in _starts(width, tile):
            piece = run(x[..., top:top + tile, left:left + tile])
            down, across = piece.shape[3:]
            fade = _fade(down, scaled(tile))[:, None] * _fade(across, scaled(tile))
            around = (scaled(left), scaled(width) - scaled(left) - across, scaled(top), scaled(height) - scaled(top) - down)
            total = total + F.pad(piece * fade.to(piece), around)
            weights = weights + F.pad(fade.to(piece), around)
    return total / weights


def _starts(length: int, tile: int) -> list[int]:
    last = max(length - tile, 0)
    return [*range(0, last, tile * 3 // 4), last]


def _fade(size: int, tile: int) -> Tensor:
    """Weights (size,) that rise from and fall to the edges over a quarter of a tile."""
    place = torch.arange(size) + 0.5
    return (torch.minimum(place, size - place) / (tile / 4)).clamp(max=1)


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
            return folder / name, None if released else json.loads((folder / "config.json").read_text())
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
