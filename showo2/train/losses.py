"""What is minimised: sums over a batch and how many terms they have, so that ranks add up to one global mean.

An objective names its terms, counts them in a batch before any forward pass, and gives their sums. The loss of a step
is sum over terms of weight * global sum / global count.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import SiglipVisionModel

from showo2 import flow
from showo2.data.documents import Pairs
from showo2.model import Showo2
from showo2.model.semantic import distillation_loss, siglip_features
from showo2.sequence import Packed
from showo2.store import fetched
from showo2.tiny import resolve


class Objective(Protocol):
    """A loss in terms; `root` is the module whose forward pass it runs, which is what gets sharded."""

    terms: tuple[str, ...]
    weights: tuple[float, ...]
    root: nn.Module

    def counts(self, micro: Any) -> list[int]:
        """How many values each term sums over."""

    def sums(self, micro: Any) -> Tensor:
        """The terms' sums (len(terms),), differentiable where their weight is not 0."""


class Unified:
    """Next-token prediction and flow matching: L = alpha * NTP + FM (equation 4); FM by quarter of t is for meters."""

    terms: tuple[str, ...] = ("ntp", "flow", "flow_t0-1/4", "flow_t1/4-1/2", "flow_t1/2-3/4", "flow_t3/4-1")
    weights: tuple[float, ...]
    root: nn.Module

    def __init__(self, model: Showo2, alpha: float):
        self.root, self.weights = model, (alpha, 1.0, 0.0, 0.0, 0.0, 0.0)

    def counts(self, micro: Packed) -> list[int]:
        """Text targets, and elements of velocity targets, also by quarter of t."""
        by_time = torch.zeros(4, dtype=torch.int64)
        for v in micro.visuals:
            by_time += torch.bincount(flow.quarter(v.t[v.target]), minlength=4) * v.latents.shape[1:].numel()
        return [*micro.targets, *by_time.tolist()]

    def sums(self, micro: Packed) -> Tensor:
        """Cross-entropy and squared error."""
        losses = self.root(micro)
        return torch.cat([torch.stack([losses.ntp, losses.flow]), losses.flow_by_time])


class Taught(Unified):
    """Scale-up: beside what `Unified` minimises, the model learns to give the flow head that it has taken over what the
    model that it was taken from gives it.

    `taught`: squared distance of both models' inputs of the flow head's blocks, as a share of the teacher's square, over
    the tokens that the flow head sees.
    """

    def __init__(self, model: Showo2, alpha: float, weight: float, teacher: Showo2):
        super().__init__(model, alpha)
        self.terms, self.weights = (*self.terms, "taught"), (*self.weights, weight)
        self.teacher = teacher.requires_grad_(False).eval()
        self._own: Tensor
        # A hook, because losses come out of the root's forward pass alone, which is what gets sharded.
        model.flow_head.project.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._own = output

    def counts(self, micro: Packed) -> list[int]:
        """As `Unified`, and tokens of the flow head."""
        return [*super().counts(micro), int((micro.flow >= 0).sum())]

    def sums(self, micro: Packed) -> Tensor:
        """As `Unified`, and the distance."""
        sums = super().sums(micro)
        with torch.no_grad():
            wanted = self.teacher.flow_inputs(micro).float()
        error = (self._own.float() - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-6)
        del self._own
        return torch.cat([sums, error.masked_fill(micro.flow < 0, 0).sum()[None]])


class Distillation:
    """Semantic layers against SigLIP's penultimate layer on the same picture (section 3.2)."""

    terms: tuple[str, ...] = ("distill", "cosine")
    weights: tuple[float, ...] = (1.0, 0.0)
    root: nn.Module

    def __init__(self, model: Showo2, siglip: str, device: torch.device):
        self.root = model.semantic
        teacher = SiglipVisionModel.from_pretrained(resolve(fetched(siglip)), dtype=torch.float32)
        self.teacher = teacher.requires_grad_(False).eval().to(device)

    def counts(self, micro: Pairs) -> list[int]:
        """Patches, for both terms."""
        patches = micro.latents[:, 0].numel() // flow.PATCH**2
        return [patches, patches]

    def sums(self, micro: Pairs) -> Tensor:
        """-log of the cosine, and the cosine itself, over patches."""
        if not len(micro.latents):
            # A rank without pictures still runs every layer, in the graph: FSDP's collectives must stay in step.
            nothing = self.root(micro.latents.new_zeros(1, *micro.latents.shape[1:]))[:0].float().sum()
            return torch.stack([nothing, nothing.detach()])
        features = self.root(flow.interpolate(micro.latents, micro.noise, micro.t))
        total, cosine = distillation_loss(features, siglip_features(self.teacher, micro.pixels))
        return torch.stack([total, cosine * features[..., 0].numel()])
