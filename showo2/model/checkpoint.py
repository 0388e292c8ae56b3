"""Weights in and out: our own folders, the released checkpoints, and new models from a base LLM and SigLIP.

Reads safetensors, or `.bin`/`.pt`/`.pth` files with `weights_only=True`: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, SiglipVisionModel

from showo2.model.config import FlowHeadConfig, Showo2Config
from showo2.tiny import resolve

if TYPE_CHECKING:
    from showo2.model.model import Showo2

# Our name <- the released name (repository showlab/Show-o, folder show-o2); the first prefix that fits is replaced.
RELEASED_NAMES = {
    "language_model.": "showo.",
    "semantic.patch_embed.": "image_embedder_und.proj.",
    "semantic.position.": "position_embedding.",
    "semantic.layers.": "und_trans.layers.",
    "projector.": "image_embedder_gen.proj.",
    "fusion.": "fusion_proj.",
    "time_embed.": "time_embed.",
    "time_project.": "time_embed_proj.",
    "flow_head.project.": "diff_proj.",
    "flow_head.blocks.": "diffusion_head_a.",
    "flow_head.final.": "diffusion_head_b.",
}
_RELEASED_BLOCK_NAMES = {
    ".attention.": ".self_attn.",
    ".attention_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".modulation.": ".adaLN_modulation.",
    "final.norm.": "final.norm_final.",
}
HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"


def to_released_name(name: str) -> str:
    """The released checkpoint's name of one of our parameters."""
    prefix = next((p for p in RELEASED_NAMES if name.startswith(p)), None)
    if prefix is None:
        raise KeyError(f"{name}: no released checkpoint holds such a parameter")
    if prefix.startswith("flow_head."):
        for ours, theirs in _RELEASED_BLOCK_NAMES.items():
            name = name.replace(ours, theirs)
    return RELEASED_NAMES[prefix] + name[len(prefix):]


def from_parts(config: Showo2Config, llm: str, siglip: str) -> Showo2:
    """A new model: language model and semantic layers from pretrained parts, the rest freshly initialised.

    `llm` and `siglip` are folders, Hub ids or `tiny:` names whose sizes must be those of `config`.
    """
    from showo2.model.model import Showo2

    model = Showo2(config)
    base = AutoModelForCausalLM.from_pretrained(resolve(llm), dtype=torch.float32)
    if base.get_input_embeddings().num_embeddings != config.llm["vocab_size"]:
        base.resize_token_embeddings(config.llm["vocab_size"], mean_resizing=False)
    model.language_model.load_state_dict(base.state_dict())
    # After every initialisation: the released constructor re-initialises these layers once they are loaded.
    model.semantic.load_siglip(SiglipVisionModel.from_pretrained(resolve(siglip), dtype=torch.float32))
    return model


def part_configs(llm: str, siglip: str, vocab_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `llm` and `siglip` entries of a `Showo2Config`, read from the parts' folders."""
    language = AutoConfig.from_pretrained(resolve(llm)).to_diff_dict() | {"vocab_size": vocab_size}
    vision = AutoConfig.from_pretrained(resolve(siglip))
    vision = getattr(vision, "vision_config", vision)
    return language, vision.to_dict()


def save_pretrained(model: Showo2, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Write `config.json` and `model.safetensors` (weights of `state`, or the model's own, as they are)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model.state_dict() if state is None else state)
    if _tied(model):
        state.pop(HEAD, None)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "showo2", **model.config.to_dict()}, indent=1))


def from_pretrained(spec: str | Path, llm: dict[str, Any] | None = None, siglip: dict[str, Any] | None = None,
                    dtype: torch.dtype = torch.float32) -> Showo2:
    """Load a model from a folder, a Hub id or a `tiny:` name, ours or the released layout.

    Released configurations only name their language model and SigLIP; `llm` and `siglip` give those configurations
    where the names cannot be resolved.
    """
    from showo2.model.model import Showo2

    folder = _local(str(spec))
    data = json.loads((folder / "config.json").read_text())
    state = dict(_tensors(folder))
    if data.pop("model_type", None) == "showo2":
        config = Showo2Config.from_dict(data)
    else:
        config = _released_config(data, state, llm, siglip)
        names = {to_released_name(n): n for n in state_names(config)}
        state = {names.get(k, k): v for k, v in state.items()}
    with torch.device("meta"):
        model = Showo2(config)
    model.to_empty(device="cpu")
    model.language_model.tie_weights()
    return load_weights(model, state, str(folder)).to(dtype)


def load_weights(model: Showo2, state: dict[str, Tensor], source: str) -> Showo2:
    """Fill `model` with `state`; a head that differs from a tied embedding unties them. Errors name the tensors."""
    head, embedding = state.get(HEAD), state[EMBEDDING]
    if head is not None and _tied(model) and not torch.equal(head, embedding):
        untie(model)
    if head is None:
        state = {**state, HEAD: embedding}
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    wrong = sorted(k for k in shapes.keys() | state.keys() if k not in shapes or k not in state
                   or shapes[k] != state[k].shape)
    if wrong:
        raise ValueError(f"{source}: {len(wrong)} tensors are missing, unknown or of another shape: {wrong[:5]}")
    model.load_state_dict(state)
    # Buffers that no checkpoint holds lived on the meta device.
    fresh = type(model.language_model.model.rotary_emb)(model.language_model.config)
    model.language_model.model.rotary_emb = fresh
    return model


def untie(model: Showo2) -> None:
    """Give the LM head weights of its own."""
    head = model.language_model.lm_head
    head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    model.language_model.config.tie_word_embeddings = False
    model.config.llm["tie_word_embeddings"] = False


def _tied(model: Showo2) -> bool:
    language = model.language_model
    return language.get_output_embeddings().weight is language.get_input_embeddings().weight


def state_names(config: Showo2Config) -> list[str]:
    """Every state-dict name of a model of this configuration, from the meta device."""
    from showo2.model.model import Showo2

    with torch.device("meta"):
        return list(Showo2(config).state_dict())


def _local(spec: str) -> Path:
    path = Path(resolve(spec))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} has no config.json: name the folder of a saved model")
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return Path(snapshot_download(spec, allow_patterns=["*.json", "*.bin", "*.safetensors", "*.txt"]))
    raise FileNotFoundError(f"{spec}: neither a folder nor a Hub id (owner/name)")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of `model.safetensors`, or of `pytorch_model.bin` or its shards."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors and no pytorch_model*.bin")
    for file in files:
        read = load_file(file) if file.suffix == ".safetensors" else torch.load(
            file, map_location="cpu", weights_only=True)
        yield from read.items()


def _released_config(data: dict[str, Any], state: dict[str, Tensor], llm: dict[str, Any] | None,
                     siglip: dict[str, Any] | None) -> Showo2Config:
    """Sizes of a released checkpoint: from its tensors where they tell, unknown keys of its `config.json` ignored."""
    if llm is None:
        llm = AutoConfig.from_pretrained(data["llm_model_path"]).to_dict()
    if siglip is None:
        vision = AutoConfig.from_pretrained(data["clip_pretrained_model_path"])
        siglip = getattr(vision, "vision_config", vision).to_dict()
    head_dim = len(state["diffusion_head_a.0.self_attn.q_norm.weight"])
    width = state["diffusion_head_b.norm_final.weight"].shape[0]
    flow = FlowHeadConfig(
        width=width,
        layers=1 + max(int(k.split(".")[1]) for k in state if k.startswith("diffusion_head_a.")),
        heads=len(state["diffusion_head_a.0.self_attn.q_proj.weight"]) // head_dim,
        kv_heads=len(state["diffusion_head_a.0.self_attn.k_proj.weight"]) // head_dim,
        head_dim=head_dim,
        intermediate=len(state["diffusion_head_a.0.mlp.gate_proj.weight"]))
    return Showo2Config(
        llm=llm | {"vocab_size": len(state["showo.model.embed_tokens.weight"])}, siglip=siglip, flow=flow,
        grid=round(len(state["position_embedding.weight"]) ** 0.5),
        size=16 * data.get("image_latent_height", 27))
