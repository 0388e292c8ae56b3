"""Saving and loading: ours, the released layout, heads tied and untied, parts; what is wrong is named."""

import json

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from showo2.model import Showo2, checkpoint
from tests.model.conftest import random_model, small_config


def equal(a: Showo2, b: Showo2) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [48, 32])
def test_round_trip(tmp_path, tied, width):
    model = random_model(small_config(width, tied))
    model.save_pretrained(tmp_path)
    again = Showo2.from_pretrained(tmp_path)
    assert equal(model, again)
    language = again.language_model
    assert (language.lm_head.weight is language.model.embed_tokens.weight) == tied
    ids = torch.arange(5)[None]
    position = torch.arange(5)[None]
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    for m in (model, again):
        m.eval()
    torch.testing.assert_close(again.language(again.embed_text(ids), mask, position),
                               model.language(model.embed_text(ids), mask, position))


def test_a_head_that_was_untied_stays_untied(tmp_path, model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state[checkpoint.HEAD] += 1
    loaded = checkpoint.load_weights(random_model(small_config()), state, "memory")
    assert not torch.equal(loaded.language_model.lm_head.weight, loaded.language_model.model.embed_tokens.weight)
    loaded.save_pretrained(tmp_path)
    assert equal(loaded, Showo2.from_pretrained(tmp_path))


def test_missing_and_misfit_tensors_are_named(tmp_path, model):
    model.save_pretrained(tmp_path)
    state = dict(checkpoint._tensors(tmp_path))
    state["projector.weight"] = state["projector.weight"][:1]
    del state["fusion.1.bias"]
    with pytest.raises(ValueError, match=r"2 tensors.*fusion\.1\.bias.*projector\.weight"):
        checkpoint.load_weights(model, state, "memory")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub id"):
        Showo2.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        Showo2.from_pretrained(tmp_path / "empty")


def test_nothing_is_unpickled(tmp_path, model):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    torch.save({"showo.x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        Showo2.from_pretrained(tmp_path)


def test_from_parts_takes_the_language_model_and_siglip(tmp_path):
    config = small_config()
    llm = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in config.llm.items() if k != "model_type"}
                                       | {"vocab_size": 320}))
    siglip = SiglipVisionModel(SiglipVisionConfig(**config.siglip))
    llm.save_pretrained(tmp_path / "llm")
    siglip.save_pretrained(tmp_path / "siglip")
    model = checkpoint.from_parts(config, str(tmp_path / "llm"), str(tmp_path / "siglip"))
    assert torch.equal(model.language_model.model.embed_tokens.weight, llm.model.embed_tokens.weight[:300])
    layers = siglip.encoder.layers
    assert len(model.semantic.layers) == len(layers) - 1
    for mine, theirs in zip(model.semantic.layers, layers, strict=False):
        assert torch.equal(mine.mlp.fc1.weight, theirs.mlp.fc1.weight)
    assert torch.equal(model.semantic.position.weight, siglip.embeddings.position_embedding.weight)
    language, vision = checkpoint.part_configs(str(tmp_path / "llm"), str(tmp_path / "siglip"), 300)
    assert language["hidden_size"] == 48 and language["vocab_size"] == 300 and vision["hidden_size"] == 32


def test_config_is_plain_json(tmp_path, model):
    model.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["model_type"] == "showo2" and data["flow"]["width"] == 32
