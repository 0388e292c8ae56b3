"""Models in and out: our own folders, the released checkpoints, and new models from a base LLM and SigLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, SiglipVisionModel

from showo2.model import released, weights
from showo2.model.config import Showo2Config
from showo2.store import fetched
from showo2.tiny import resolve

if TYPE_CHECKING:
    from showo2.model.model import Showo2

HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
_CONFIG = "config.json"
_MODEL_TYPE = "showo2"


def from_parts(config: Showo2Config, llm: str, siglip: str) -> Showo2:
    """A new model: language model and semantic layers from pretrained parts, the rest freshly initialised.

    `llm` and `siglip` are folders, Hub ids or `tiny:` names whose sizes must be those of `config`.
    """
    from showo2.model.model import Showo2

    model = Showo2(config)
    base = AutoModelForCausalLM.from_pretrained(resolve(fetched(llm)), dtype=torch.float32)
    if base.get_input_embeddings().num_embeddings != config.llm["vocab_size"]:
        base.resize_token_embeddings(config.llm["vocab_size"], mean_resizing=False)
    model.language_model.load_state_dict(base.state_dict())
    # After every initialisation: the released constructor re-initialises these layers once they are loaded.
    model.semantic.load_siglip(SiglipVisionModel.from_pretrained(resolve(fetched(siglip)), dtype=torch.float32))
    return model


def part_configs(llm: str, siglip: str, vocab_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `llm` and `siglip` entries of a `Showo2Config`, read from the parts' folders."""
    language = AutoConfig.from_pretrained(resolve(fetched(llm))).to_diff_dict() | {"vocab_size": vocab_size}
    vision = AutoConfig.from_pretrained(resolve(fetched(siglip)))
    vision = getattr(vision, "vision_config", vision)
    return language, vision.to_dict()


def from_pretrained(spec: str | Path, llm: dict[str, Any] | None = None, siglip: dict[str, Any] | None = None,
                    dtype: torch.dtype | Literal["auto"] = torch.float32, revision: str | None = None) -> Showo2:
    """Load a model, in eval mode, from a folder, a URL, a Hub id or a `tiny:` name, of ours or of the released layout.

    dtype: of the weights in memory, "auto" as stored. revision: branch, tag or commit on the Hub. llm, siglip: see
    `released.read_config`. Raises FileNotFoundError where files are missing, ValueError where tensors do not fit.
    """
    from showo2.model.model import Showo2

    folder = weights.locate(spec, revision)
    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {_CONFIG}: name the folder of a saved model")
    data = json.loads((folder / _CONFIG).read_text())
    state = read_state(folder)
    if data.pop("model_type", None) == _MODEL_TYPE:
        config = Showo2Config.from_dict(data)
    else:
        config = released.read_config(data, state, llm, siglip)
    if dtype == "auto":
        dtype = state["fusion.1.weight"].dtype
    with torch.device("meta"):
        model = Showo2(config)
    return load_weights(model, state, str(folder), dtype).eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file or a model's folder, under our names whatever theirs are."""
    state = weights.read(path)
    return {released.from_name(n): t for n, t in state.items()} if released.uses_names(state) else state


def load_weights(model: Showo2, state: dict[str, Tensor], source: str, dtype: torch.dtype = torch.float32) -> Showo2:
    """Fill `model` (on the meta device or not) with copies of `state`; a missing head is the embedding.

    A head that differs from a tied embedding unties them. Errors name `source` and the tensors.
    """
    language = model.language_model
    if _tied(model) and not torch.equal(state.get(HEAD, state[EMBEDDING]), state[EMBEDDING]):
        _untie(model)
    state = {HEAD: state[EMBEDDING], **state}
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    wrong = sorted(k for k in shapes.keys() | state.keys() if k not in shapes or k not in state
                   or shapes[k] != state[k].shape)
    if wrong:
        raise ValueError(f"{source}: {len(wrong)} tensors are missing, unknown or of another shape: {wrong[:5]}")
    # Copies, because what was read may be a view of the file.
    model.load_state_dict({k: v.to(dtype, copy=True) for k, v in state.items()}, assign=True)
    if language.config.tie_word_embeddings:
        language.lm_head.weight = language.model.embed_tokens.weight
    # Buffers that no checkpoint holds lived on the meta device.
    language.model.rotary_emb = type(language.model.rotary_emb)(language.config)
    return model


def save_pretrained(model: Showo2, folder: str | Path, state: dict[str, Tensor] | None = None,
                    max_shard_size: int | str = "5GB") -> None:
    """Write `config.json` and `model.safetensors` (weights of `state`, or the model's own, as they are).

    Weights beyond `max_shard_size` (bytes, or a text such as "5GB") are cut into shards with an index.
    """
    folder = Path(folder)
    state = dict(model.state_dict() if state is None else state)
    if _tied(model):
        state.pop(HEAD, None)
    weights.write(state, folder, max_shard_size)
    (folder / _CONFIG).write_text(json.dumps({"model_type": _MODEL_TYPE, **model.config.to_dict()}, indent=1))


def save_released(model: Showo2, folder: str | Path, llm: str, siglip: str, max_shard_size: int | str = "10GB") -> None:
    """Write the model as the released code reads it: `pytorch_model.bin` and its `config.json`.

    llm, siglip: Hub ids or folders by which that code will find the base models' own configurations and tokenizer.
    Raises ValueError for a model whose output order the released code does not know.
    """
    if model.config.order != "released":
        raise ValueError(f"the model's output order is {model.config.order!r}, which the released code does not know; "
                         "save it with save_pretrained")
    folder = Path(folder)
    weights.write_released({released.to_name(n): t for n, t in model.state_dict().items()}, folder, max_shard_size)
    (folder / _CONFIG).write_text(json.dumps(released.write_config(model.config, llm, siglip), indent=1))


def _untie(model: Showo2) -> None:
    """Give the LM head weights of its own."""
    head = model.language_model.lm_head
    head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    model.language_model.config.tie_word_embeddings = False
    model.config.llm["tie_word_embeddings"] = False


def _tied(model: Showo2) -> bool:
    language = model.language_model
    return language.get_output_embeddings().weight is language.get_input_embeddings().weight
