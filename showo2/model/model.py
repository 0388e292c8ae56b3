"""Show-o2 (arXiv 2506.15564, section 3): one language model that reads text and latents, and a flow head that draws.

Shape suffixes: B rows, L context, D width of the language model, n media, C channels, T frames, h and w latent sides,
N = T*h*w/4 visual tokens of a medium.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from showo2 import flow
from showo2.model import checkpoint
from showo2.model.attention import OMNI, DocumentMask, Mask, make_mask
from showo2.model.config import Showo2Config
from showo2.model.cross_entropy import chunked_cross_entropy
from showo2.model.flow_head import FlowHead, TimeEmbedding
from showo2.model.lean import make_lean, trim_last
from showo2.model.semantic import SemanticLayers
from showo2.sequence import IGNORE, Packed, Visuals
from showo2.vae import CHANNELS


class Losses(NamedTuple):
    """Sums over a batch: cross-entropy over text targets, squared error over elements of velocity targets.

    Their numbers are `Packed.targets`; the trainer divides global sums by global numbers. flow_by_time: (4,), the
    parts of `flow` by quarter of t, for meters. (A tuple: FSDP finds the tensors in it, to begin its backward pass.)
    """

    ntp: Tensor
    flow: Tensor
    flow_by_time: Tensor


class Fusion(nn.Sequential):
    """Spatial(-temporal) fusion STF (equation 1): RMSNorm over cat[S, P], Linear, GELU, Linear."""

    def __init__(self, semantic: int, width: int):
        super().__init__(nn.RMSNorm(semantic + width, eps=1e-6), nn.Linear(semantic + width, width), nn.GELU(),
                         nn.Linear(width, width))

    @torch.no_grad()
    def amplify(self, projected: float, fused: float) -> None:
        """Multiply what P puts into the first Linear, and what the fusion puts out, at the start of training.

        S's features are some ten times larger than P's, and what a pretrained language model adds to its residual
        stream some ten times larger than a new fusion's output: a small model finds the latents under neither.
        """
        norm, last = cast(nn.RMSNorm, self[0]), cast(nn.Linear, self[3])
        norm.weight[-last.out_features:] *= projected
        last.weight *= fused


class Showo2(nn.Module):
    """The unified model; `forward` is the training objective, the other methods are its pieces."""

    def __init__(self, config: Showo2Config):
        super().__init__()
        self.config = config
        llm = AutoConfig.for_model(**config.llm)
        self.language_model = AutoModelForCausalLM.from_config(llm, attn_implementation=OMNI)
        make_lean(self.language_model.model.layers)
        trim_last(self.language_model.model.layers)
        width, flow_width = llm.hidden_size, config.flow.width
        self.semantic = SemanticLayers(config.siglip, config.grid)
        self.projector = nn.Conv2d(CHANNELS, width, flow.PATCH, flow.PATCH)
        self.fusion = Fusion(config.siglip["hidden_size"], width)
        self.time_embed = TimeEmbedding(flow_width)
        self.time_project = nn.Identity() if width == flow_width else nn.Linear(flow_width, width)
        self.flow_head = FlowHead(config.flow, width, flow.PATCH**2 * CHANNELS)
        self.flow_head.init_weights()

    @classmethod
    def from_pretrained(cls, spec: str | Path, **options: Any) -> Showo2:
        """Load from a folder, a Hub id or a `tiny:` name; see `checkpoint.from_pretrained`."""
        return checkpoint.from_pretrained(spec, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a folder that `from_pretrained` reads; see `checkpoint.save_pretrained`."""
        checkpoint.save_pretrained(self, folder, **options)

    def forward(self, packed: Packed) -> Losses:
        """Both losses of a packed batch (equation 4), as sums; zero where a modality is absent."""
        hidden, time = self._hidden(packed)
        velocity = self.packed_velocity(hidden, time, packed)
        by_time = flow_loss(velocity, packed.visuals, self.config.order)
        return Losses(self.next_token_loss(hidden, packed.labels), by_time.sum(), by_time.detach())

    def flow_inputs(self, packed: Packed) -> Tensor:
        """What the flow head's blocks are given, (B, F, D_flow): hidden states at the columns that `packed.flow` names,
        projected."""
        hidden, _ = self._hidden(packed)
        return self.flow_head.project(_at_flow(hidden, packed.flow))

    def _hidden(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Hidden states (B, L, D), where a loss reads them, and the time embeddings of all media."""
        embeds, time = self.embed(packed)
        mask = make_mask(packed.doc, packed.span)
        return self.language(embeds, mask, packed.position, read=read_by_losses(packed, mask)), time

    def embed(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Inputs of the language model (B, L, D), and the time embeddings (n, D_flow) of all media."""
        embeds = self.embed_text(packed.ids)
        flat, times, places, tokens = embeds.flatten(0, 1), [], [], []
        for v in packed.visuals:
            time, span = self.embed_visual(flow.interpolate(v.latents, v.noise, v.t), v.t)
            times.append(time)
            tokens.append(span.flatten(0, 1))
            places.append((v.start[:, None] + torch.arange(span.shape[1], device=v.start.device)).flatten())
        flat = flat.index_copy(0, torch.cat(places), torch.cat(tokens).to(flat.dtype))
        return flat.view_as(embeds), torch.cat(times)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) to embeddings (B, L, D)."""
        return self.language_model.get_input_embeddings()(ids)

    def embed_visual(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents (n, C, T, h, w) at times t (n,): time embeddings (n, D_flow), visual spans (n, 1 + N, D).

        Each frame goes through S and P as a picture of its own; all frames are fused together.
        """
        n, _, frames = latents.shape[:3]
        time = self.time_embed(t)
        pictures = latents.transpose(1, 2).flatten(0, 1).to(self.projector.weight.dtype)
        fused = self.fuse(pictures)
        fused = fused.reshape(n, frames * fused.shape[1], fused.shape[2])
        return time, torch.cat([self.time_project(time)[:, None], fused], 1)

    def fuse(self, pictures: Tensor) -> Tensor:
        """Dual path and fusion of latents (m, C, h, w): visual tokens (m, h*w/4, D)."""
        if not len(pictures):
            # A rank without media still runs every module, in the graph: FSDP's collectives must stay in step.
            return self.fuse(pictures.new_zeros(1, *pictures.shape[1:]))[:0]
        projected = self.projector(pictures).flatten(2).transpose(1, 2)
        return self.fusion(torch.cat([self.semantic(pictures), projected], -1))

    def language(self, embeds: Tensor, mask: Mask, position: Tensor, cache: DynamicCache | None = None,
                 read: tuple[Tensor, Mask] | None = None) -> Tensor:
        """Hidden states (B, L, D) after the final norm; `cache` holds what came before and takes what is new.

        read: the only rows of the flattened batch that will be looked at, and their mask (`read_by_losses`).
        """
        return self.language_model.model(inputs_embeds=embeds, omni_mask=mask, omni_read=read, position_ids=position,
                                         past_key_values=cache, use_cache=cache is not None).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of hidden states (..., D)."""
        return self.language_model.get_output_embeddings()(hidden)

    def next_token_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of hidden states (B, L, D); the LM head runs on labelled positions only, in chunks."""
        labelled = (labels != IGNORE).flatten().nonzero().squeeze(1)
        # Also without any label: every rank must run the head.
        return chunked_cross_entropy(hidden.flatten(0, 1)[labelled], self.language_model.get_output_embeddings().weight,
                                     labels.flatten()[labelled])

    def packed_velocity(self, hidden: Tensor, time: Tensor, packed: Packed) -> Tensor:
        """Velocity tokens (B, F, 4*C) at the columns that `packed.flow` names."""
        columns = packed.flow.clamp(min=0)
        padding = packed.flow < 0
        doc = packed.doc.gather(1, columns).masked_fill(padding, 0)
        span = packed.span.gather(1, columns).masked_fill(padding, 0)
        position = packed.position.gather(1, columns)
        return self.flow_head(_at_flow(hidden, packed.flow), time, span, position, make_mask(doc, span))


def _at_flow(hidden: Tensor, places: Tensor) -> Tensor:
    """(B, F, D) of hidden states (B, L, D) at columns `places` (B, F), where padding (-1) takes the first."""
    return hidden.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1]))


def read_by_losses(packed: Packed, mask: Mask) -> tuple[Tensor, Mask] | None:
    """What the losses read of the last block: labelled positions and those of the flow head, as rows of the flattened
    batch, and the mask without what else attends. None on a GPU, where shapes that change would be compiled anew.
    """
    if packed.ids.is_cuda:
        return None
    read = packed.labels != IGNORE
    read.scatter_(1, packed.flow.clamp(min=0), True)
    rows = read.flatten().nonzero().squeeze(1)
    return rows, mask.of(rows) if isinstance(mask, DocumentMask) else mask


def flow_loss(velocity: Tensor, visuals: list[Visuals], order: flow.Order) -> Tensor:
    """Summed squared error between velocity tokens (B, F, 4*C) and x1 - x0 over media with a target, (4,) by quarter of t.

    The time token has no target.
    """
    flat = velocity.flatten(0, 1)
    total = flat.new_zeros(4, dtype=torch.float32) + flat[:0].float().sum()
    for v in visuals:
        wanted = flow.to_tokens(v.latents[v.target] - v.noise[v.target], order)
        places = v.flow_start[v.target][:, None] + 1 + torch.arange(wanted.shape[1], device=flat.device)
        errors = (flat[places].float() - wanted).square().sum((1, 2))
        total = total + errors @ F.one_hot(flow.quarter(v.t[v.target]), 4).to(errors)
    return total
