"""The golden data: what the released implementation recorded, and our pieces run on it.

`SHOWO2_GOLDEN=DIR` names other data of the same form; every size is read from it. `SHOWO2_DEVICE=cuda` runs on a GPU.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from showo2 import compat, flow
from showo2.model import Showo2
from showo2.model.attention import dense_mask
from showo2.sequence import (
    IGNORE,
    Media,
    Packed,
    Visuals,
    captioning,
    conversation,
    interleaved,
    text_to_image,
)
from showo2.text import SpecialTokens

GOLDEN = Path(os.environ.get("SHOWO2_GOLDEN", Path(__file__).parents[1] / "golden"))
ACTIVATION, LOSS, GRADIENT, TRAJECTORY, VAE = 2e-5, 1e-5, 1e-4, 2e-4, 1e-5
DEVICE = os.environ.get("SHOWO2_DEVICE", "cpu")
# The tolerances are those of float32; PyTorch lets convolutions on GPUs have less.
torch.backends.cudnn.allow_tf32 = False
# Scenarios that some test has asked for.
ASKED: set[str] = set()


def scenarios(*patterns: str) -> list[str]:
    """Names of the scenarios in the golden folder that fit any of `patterns`."""
    found = sorted({p.stem for pattern in patterns for p in GOLDEN.glob(f"{pattern}.json")})
    ASKED.update(found)
    return found


def facts(name: str) -> dict:
    """A scenario's `.json`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def read(name: str, device: str = DEVICE) -> tuple[dict, dict[str, torch.Tensor]]:
    """A scenario's `.json` and its tensors."""
    return facts(name), load_file(GOLDEN / f"{name}.safetensors", device)


def load_model(name: str) -> Showo2:
    """The released checkpoint that a scenario ran on."""
    kind = name.rsplit("_", 1)[1]
    config = facts(f"model_{kind}/config")["config"]
    llm = {"model_type": "qwen2", **config["llm_config_on_disk(vocab before resize)"]}
    where = GOLDEN / f"model_{kind}" / "official_save_pretrained"
    return Showo2.from_pretrained(where, llm=llm, siglip=config["siglip_vision_config"]).to(DEVICE)


def special_ids(ids: dict[str, int]) -> SpecialTokens:
    """Our special tokens from a `.json`'s."""
    return SpecialTokens(ids["bos_id"], ids["eos_id"], ids["boi_id"], ids["eoi_id"], ids["bov_id"], ids["eov_id"],
                         ids["img_pad_id"], ids["vid_pad_id"], ids["pad_id"])


def as_clips(latents: torch.Tensor) -> torch.Tensor:
    """(n, C, h, w) or (n, C, T, h, w) to the latter."""
    return latents[:, :, None] if latents.dim() == 4 else latents


def pack_golden(g: dict[str, torch.Tensor]) -> Packed:
    """The packed batch that says what the released call's arguments say: one document a row, pads a part of it."""
    ids = g["text_tokens"]
    b, length = ids.shape
    latents = as_clips(g["image_latents"])
    velocity = g.get("image_labels", torch.zeros_like(latents)).view_as(latents)
    spans = [(r, int(o), int(n)) for r, row in enumerate(g["modality_positions"]) for o, n in row]
    kept = [i for i, (_, _, n) in enumerate(spans) if n]
    span = torch.zeros_like(ids)
    for number, i in enumerate(kept):
        r, o, n = spans[i]
        span[r, o:o + n] = number + 1
    t = g["t"]
    x1 = latents + (1 - t).view(-1, 1, 1, 1, 1) * velocity
    x0 = latents - t.view(-1, 1, 1, 1, 1) * velocity
    masks = g.get("image_masks")
    target = torch.tensor([masks is None or bool(masks[spans[i][0], spans[i][1] + 1]) for i in kept])
    start = torch.tensor([spans[i][0] * length + spans[i][1] for i in kept])
    columns = torch.arange(length).repeat(b, 1)
    labels = torch.full_like(ids, IGNORE)
    if "text_labels" in g:
        labels[:, :-1] = g["text_labels"][:, 1:]
    doc = torch.arange(1, b + 1)[:, None].repeat(1, length)
    visuals = [Visuals(x1[kept], x0[kept], t[kept], target, start, start)]
    return Packed(ids, labels, doc, span, columns, columns, visuals).to(torch.device(DEVICE))


def as_released(packed: Packed, g: dict[str, torch.Tensor]) -> Packed:
    """The batch with the released code's treatment of padding images, where it has any."""
    images = g["modality_positions"].flatten(0, 1)
    padding = (images[:, 1] == 0).nonzero().squeeze(1)
    rows = padding // g["modality_positions"].shape[1]
    return compat.overwrite_bos(packed, rows, g["t"][padding]) if len(padding) else packed


def run(model: Showo2, packed: Packed) -> dict[str, torch.Tensor]:
    """What the released forward returns, and some of what it passes through, from our pieces."""
    embeds, time = model.embed(packed)
    hidden = model.language(embeds, dense_mask(packed.doc, packed.span), packed.position)
    velocity = model.packed_velocity(hidden, time, packed)
    visuals = packed.visuals[0]
    n, (frames, h, w) = len(visuals.t), visuals.latents.shape[2:]
    tokens = frames * h * w // 4
    v = velocity.flatten(0, 1)[visuals.start[:, None] + 1 + torch.arange(tokens, device=DEVICE)]
    return {"act.llm_inputs_embeds": embeds, "act.llm_last_hidden": hidden, "logits": model.logits(hidden),
            "act.time_embed_out": time, "act.diff_proj_out": model.flow_head.project(hidden),
            "act.flow_out_fullseq": velocity, "v_pred": flow.from_tokens(v, (frames, h, w))[:n]}


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Equal within an absolute tolerance."""
    torch.testing.assert_close(ours.view_as(theirs).cpu(), theirs.cpu(), atol=tolerance, rtol=0)


def layout_document(case: str, layout: dict, ids: list[int], media: list[Media], spans: list[list[int]]) -> list:
    """The document whose texts are those that stand around the pictures of a row."""
    names = facts("k_layouts")
    special = special_ids(names["special_ids"])
    end = ids.index(special.eos) if special.eos in ids else len(ids)
    if case.startswith("mmu_"):
        modulus = int(re.search(r"% (\d+)", names["dummy_tokenizer"]).group(1))
        tokenizer = SimpleNamespace(special=special, encode=lambda text: [ord(c) % modulus for c in text])
        return conversation(tokenizer, layout["conversations"], media[0] if media else None,
                            "pretrain" if "pre-training" in case else "chat")
    if case.startswith("und_"):
        return captioning(special, media[0], ids[sum(spans[0]) + 1:end])
    if case.startswith(("interleaved", "vist")):
        flag = layout.get("flag_tokens", [])
        segments, start = [], 1 + len(flag)
        for medium, (offset, size) in zip(media, spans, strict=True):
            segments += [ids[start:offset - 1], medium]
            start = offset + size + 1
        return interleaved(special, [*segments, ids[start:end]], flag)
    return text_to_image(special, ids[1:spans[0][0] - 1], media[0])
