"""The released checkpoints (repository showlab/Show-o, folder show-o2): their names and their `config.json`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig

from showo2.model.config import FlowHeadConfig, Showo2Config

# Our prefix <- the released one; every parameter has one of them.
NAMES = {
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
_BLOCK_NAMES = {
    ".attention.": ".self_attn.",
    ".attention_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".modulation.": ".adaLN_modulation.",
    "final.norm.": "final.norm_final.",
}
# Pixels on a side of a visual token.
_TOKEN = 16


def to_name(name: str) -> str:
    """The released checkpoint's name of one of our parameters."""
    prefix = next((p for p in NAMES if name.startswith(p)), None)
    if prefix is None:
        raise KeyError(f"{name}: no released checkpoint holds such a parameter")
    if prefix.startswith("flow_head."):
        for ours, theirs in _BLOCK_NAMES.items():
            name = name.replace(ours, theirs)
    return NAMES[prefix] + name[len(prefix):]


def from_name(name: str) -> str:
    """Our name of a released parameter; a name that the released model does not have comes back as it is."""
    ours = next((p for p, theirs in NAMES.items() if name.startswith(theirs)), None)
    if ours is None:
        return name
    name = ours + name[len(NAMES[ours]):]
    if ours.startswith("flow_head."):
        for mine, theirs in _BLOCK_NAMES.items():
            name = name.replace(theirs, mine)
    return name


def uses_names(state: dict[str, Tensor]) -> bool:
    """Whether every tensor is named as in the released code."""
    return all(name.startswith(tuple(NAMES.values())) for name in state)


def read_config(data: dict[str, Any], state: dict[str, Tensor], llm: dict[str, Any] | None,
                siglip: dict[str, Any] | None) -> Showo2Config:
    """Sizes of a released checkpoint: from its tensors (our names) where they tell, else from its `config.json`.

    That file only names the language model and SigLIP; `llm` and `siglip` are their configurations where the names
    cannot be resolved. Keys that we do not know are ignored.
    """
    if llm is None:
        llm = AutoConfig.from_pretrained(data["llm_model_path"]).to_dict()
    if siglip is None:
        vision = AutoConfig.from_pretrained(data["clip_pretrained_model_path"])
        siglip = getattr(vision, "vision_config", vision).to_dict()
    block = "flow_head.blocks.0."
    head_dim = len(state[f"{block}attention.q_norm.weight"])
    flow = FlowHeadConfig(
        width=len(state["flow_head.final.norm.weight"]),
        layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("flow_head.blocks.")),
        heads=len(state[f"{block}attention.q_proj.weight"]) // head_dim,
        kv_heads=len(state[f"{block}attention.k_proj.weight"]) // head_dim,
        head_dim=head_dim,
        intermediate=len(state[f"{block}mlp.gate_proj.weight"]))
    llm = llm | {"vocab_size": len(state["language_model.model.embed_tokens.weight"])}
    return Showo2Config(llm, siglip, flow, grid=round(len(state["semantic.position.weight"]) ** 0.5),
                        size=_TOKEN * data.get("image_latent_height", 27))


def write_config(config: Showo2Config, llm: str, siglip: str) -> dict[str, Any]:
    """The released `config.json` of a model; `llm` and `siglip` are the names it gives its parts."""
    side = config.size // _TOKEN
    return {
        "_class_name": "Showo2Qwen2_5", "add_qk_norm": True, "add_time_embeds": True,
        "clip_latent_dim": config.siglip["hidden_size"], "clip_pretrained_model_path": siglip,
        "hidden_size": config.llm["hidden_size"], "image_latent_dim": 16, "image_latent_height": side,
        "image_latent_width": side, "llm_model_path": llm, "llm_vocab_size": config.llm["vocab_size"],
        "load_from_showo": True, "num_diffusion_layers": config.flow.layers, "patch_size": 2,
    }
