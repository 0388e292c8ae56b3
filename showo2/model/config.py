"""Sizes of a Show-o2 model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from showo2.flow import Order


@dataclass(frozen=True)
class FlowHeadConfig:
    """The flow head: `layers` adaLN-Zero blocks of grouped-query attention and SwiGLU (defaults: 1.5B and 7B)."""

    width: int = 2048
    layers: int = 10
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 64
    intermediate: int = 8192


@dataclass(frozen=True)
class Showo2Config:
    """Everything needed to build an empty model.

    llm: the base language model's Hugging Face configuration, with `model_type`; its vocabulary already resized.
    siglip: the SigLIP vision tower's configuration; the semantic layers are all of its layers but the last.
    grid: side of the native position table, in visual tokens (27 for SigLIP so400m at 384 px).
    order: of the flow head's output pixels (see `flow.to_tokens`); released weights need "released".
    conversation: template of question answering, "chat" or "plain" (see `sequence.conversation`).
    size: picture side in pixels that generation uses unless told otherwise.
    vae: where the latents come from (a folder, a Hub id or `tiny:vae`); the model itself never loads it.
    """

    llm: dict[str, Any]
    siglip: dict[str, Any]
    flow: FlowHeadConfig = field(default_factory=FlowHeadConfig)
    grid: int = 27
    order: Order = "released"
    conversation: str = "chat"
    size: int = 432
    vae: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `config.json` holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Showo2Config:
        """Inverse of `to_dict`."""
        return cls(**{**data, "flow": FlowHeadConfig(**data["flow"])})
