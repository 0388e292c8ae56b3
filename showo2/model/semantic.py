"""Semantic layers S (section 3.1): SigLIP's transformer, reading latents instead of pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from showo2.flow import PATCH
from showo2.model.attention import FULL
from showo2.model.lean import make_lean
from showo2.vae import CHANNELS


class SemanticLayers(nn.Module):
    """Patch embedding and position table, then all of SigLIP's layers but the last; no post-LayerNorm."""

    def __init__(self, siglip: dict[str, Any], grid: int):
        super().__init__()
        config = SiglipVisionConfig(**{**siglip, "num_hidden_layers": siglip["num_hidden_layers"] - 1})
        config._attn_implementation = FULL
        self.grid = grid
        self.patch_embed = nn.Conv2d(CHANNELS, config.hidden_size, PATCH, PATCH)
        self.position = nn.Embedding(grid * grid, config.hidden_size)
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers))
        make_lean(self.layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (n, C, h, w), frames as images of their own, to features (n, h*w/4, D_s)."""
        x = self.patch_embed(latents)
        x = x.flatten(2).transpose(1, 2) + self.positions(x.shape[2], x.shape[3])
        for layer in self.layers:
            x = layer(x, attention_mask=None)
        return x

    def positions(self, h: int, w: int) -> Tensor:
        """Position embeddings (h*w, D_s) of any grid of visual tokens, bicubic where it is not the native one."""
        # Through forward, not `.weight`: FSDP gathers a parameter only for a call of its module.
        table = self.position(torch.arange(self.grid**2, device=self.position.weight.device))
        if (h, w) == (self.grid, self.grid):
            return table
        table = table.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table.float(), (h, w), mode="bicubic", align_corners=False).to(table.dtype)
        return table.permute(0, 2, 3, 1).flatten(0, 2)

    def load_siglip(self, vision: SiglipVisionModel) -> None:
        """Take SigLIP's layers (but the last) and, where the grids agree, its positions; the patches stay new."""
        for mine, theirs in zip(self.layers, vision.encoder.layers, strict=False):
            mine.load_state_dict(theirs.state_dict())
        positions = vision.embeddings.position_embedding.weight
        if positions.shape == self.position.weight.shape:
            self.position.weight.data.copy_(positions)


def pool_frames(tokens: Tensor, side: int = 14) -> Tensor:
    """Video understanding's frame pooling: visual tokens (n, T, N, D) on square grids, bilinear to (n, T*side^2, D)."""
    n, frames, count, width = tokens.shape
    grid = round(count**0.5)
    x = tokens.flatten(0, 1).transpose(1, 2).view(n * frames, width, grid, grid)
    x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    return x.flatten(2).transpose(1, 2).reshape(n, frames * side * side, width)


@torch.no_grad()
def siglip_features(vision: SiglipVisionModel, pixels: Tensor) -> Tensor:
    """The distillation teacher: SigLIP's penultimate layer without post-LayerNorm, (n, 3, H, W) to (n, N, D_s)."""
    return vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]


def distillation_loss(features: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over patches of -log(clamp(cos, 1e-4, 0.9999)) and the mean cosine; features, teacher: (n, N, D_s)."""
    cosine = F.cosine_similarity(features.float(), teacher.float(), dim=-1)
    return -cosine.clamp(1e-4, 0.9999).log().sum(), cosine.detach().mean()
