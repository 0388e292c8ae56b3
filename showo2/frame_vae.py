"""The Wan 2.1 VAE as one frame sees it: 2D convolutions, under diffusers' names (see `showo2.vae`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16


class _Norm(nn.Module):
    """Root-mean-square norm over the channels of (B, C, H, W), in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normal = wide * wide.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt()
        return normal.to(x.dtype) * (self.gamma * len(self.gamma) ** 0.5)


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = _Norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = _Norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class _Attention(nn.Module):
    """Single-head attention over the positions of one frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Norm(channels)
        self.to_qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(*(part[:, None] for part in qkv.chunk(3, dim=-1)))
        return x + self.proj(mixed[:, 0].transpose(1, 2).reshape(x.shape))


class _Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.resnets = nn.ModuleList([_Residual(channels, channels), _Residual(channels, channels)])
        self.attentions = nn.ModuleList([_Attention(channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Resample(nn.Module):
    """Half the height and width, or twice these at half the channels."""

    def __init__(self, channels: int, down: bool):
        super().__init__()
        if down:
            layers = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)]
        else:
            layers = [nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
                      nn.Conv2d(channels, channels // 2, 3, padding=1)]
        self.resample = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class _Up(nn.Module):
    """Residual blocks, then, but for the last, twice the height and width."""

    def __init__(self, channels: int, out: int, blocks: int, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(channels if i == 0 else out, out) for i in range(blocks + 1))
        self.upsamplers = nn.ModuleList([] if last else [_Resample(out, down=False)])

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.resnets, *self.upsamplers]:
            x = block(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        widths = [config["base_dim"] * m for m in (1, *config["dim_mult"])]
        blocks: list[nn.Module] = []
        for level, out in enumerate(widths[1:]):
            channels = widths[level]
            for _ in range(config["num_res_blocks"]):
                blocks.append(_Residual(channels, out))
                channels = out
            if level < len(widths) - 2:
                blocks.append(_Resample(out, down=True))
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(blocks)
        self.mid_block, self.norm_out = _Middle(widths[-1]), _Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class _Decoder(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        base, factors = config["decoder_base_dim"] or config["base_dim"], config["dim_mult"][::-1]
        widths = [base * m for m in (factors[0], *factors)]
        last = len(factors) - 1
        self.conv_in = nn.Conv2d(CHANNELS, widths[0], 3, padding=1)
        self.mid_block = _Middle(widths[0])
        self.up_blocks = nn.ModuleList(
            _Up(widths[i] // 2 if i else widths[0], widths[i + 1], config["num_res_blocks"], i == last)
            for i in range(len(factors)))
        self.norm_out, self.conv_out = _Norm(widths[-1]), nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            z = block(z)
        return self.conv_out(F.silu(self.norm_out(z)))


class FrameVAE(nn.Module):
    """The network as one frame sees it, under diffusers' names. Channels last: half the time on a CPU."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.quant_conv = nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 1)
        self.post_quant_conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> raw mean and log-variance (B, 32, h, w)."""
        return self.quant_conv(self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    def decode(self, raw: Tensor) -> Tensor:
        """Raw latents (B, 16, h, w) -> (B, 3, H, W)."""
        return self.decoder(self.post_quant_conv(raw.contiguous(memory_format=torch.channels_last)))


def load_frame_vae(config: dict[str, Any], state: dict[str, Tensor]) -> FrameVAE:
    """Of each causal 3D kernel the last temporal slice; temporal resampling has no part in a first frame."""
    with torch.device("meta"):
        frame = FrameVAE(config)
    flat = {}
    for name, tensor in state.items():
        if ".time_conv." not in name:
            tensor = tensor[:, :, -1] if tensor.dim() == 5 else tensor
            # A contiguous copy of its own: what is left of the kernel stays with the 3D network's weights.
            flat[name] = tensor.reshape(-1, 1, 1) if name.endswith(".gamma") else tensor.clone()
    frame.load_state_dict(flat, assign=True)
    frame.eval().requires_grad_(False)
    return frame.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
