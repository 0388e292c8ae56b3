"""Saving and loading: ours, the released layout, heads tied and untied, parts; what is wrong is named."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from huggingface_hub import snapshot_download
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from showo2.model import Showo2, checkpoint, weights
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
    state = dict(weights.read(tmp_path))
    state["projector.weight"] = state["projector.weight"][:1]
    del state["fusion.1.bias"]
    with pytest.raises(ValueError, match=r"2 tensors.*fusion\.1\.bias.*projector\.weight"):
        checkpoint.load_weights(model, state, "memory")
    with pytest.raises(FileNotFoundError, match="no such file or folder, and not a Hub id"):
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


def test_shards_over_a_size_and_their_index(tmp_path, model):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 1 and (tmp_path / "model.safetensors.index.json").is_file()
    assert equal(model, Showo2.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["config.json", "model.safetensors"]


def test_dtype_and_mode(tmp_path, model):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype, stored in (("auto", torch.bfloat16), (torch.float16, torch.float16)):
        loaded = Showo2.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {stored} and not loaded.training
        # Positions lose their meaning in half precision.
        assert loaded.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {p.dtype for p in Showo2.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_a_loaded_model_outlives_its_files(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = Showo2.from_pretrained(tmp_path)
    random_model(small_config(tied=False)).save_pretrained(tmp_path)
    assert equal(model, loaded)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("limit", ["10GB", "50KB"])
def test_released_layout_there_and_back(tmp_path, tied, limit):
    model = random_model(small_config(tied=tied))
    checkpoint.save_released(model, tmp_path, "Qwen/small", "google/small", max_shard_size=limit)
    names = {p.name for p in tmp_path.iterdir()}
    assert ("pytorch_model.bin" in names) == (limit == "10GB")
    assert ("diffusion_pytorch_model.bin.index.json" in names) == (limit == "50KB")
    assert "showo.lm_head.weight" in weights.read(tmp_path)
    config = model.config
    again = Showo2.from_pretrained(tmp_path, llm=config.llm, siglip=config.siglip)
    assert equal(model, again)
    assert (again.language_model.lm_head.weight is again.language_model.model.embed_tokens.weight) == tied
    assert again.config.flow == config.flow and again.config.size == config.size and again.config.grid == config.grid


def test_released_config_may_hold_more_or_less(tmp_path, model):
    """Demo files say `num_refiner_layers`; some name no `num_diffusion_layers`, whose default is 10."""
    checkpoint.save_released(model, tmp_path, "Qwen/small", "google/small")
    data = json.loads((tmp_path / "config.json").read_text())
    del data["num_diffusion_layers"], data["image_latent_height"]
    (tmp_path / "config.json").write_text(json.dumps(data | {"num_refiner_layers": 7, "anything": [1]}))
    again = Showo2.from_pretrained(tmp_path, llm=model.config.llm, siglip=model.config.siglip)
    assert again.config.flow.layers == 2 and again.config.size == 432 and equal(model, again)


def test_released_parts_are_found_by_their_names(tmp_path, model):
    Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in model.config.llm.items() if k != "model_type"})).save_pretrained(
        tmp_path / "llm")
    SiglipVisionModel(SiglipVisionConfig(**model.config.siglip)).save_pretrained(tmp_path / "siglip")
    checkpoint.save_released(model, tmp_path / "out", str(tmp_path / "llm"), str(tmp_path / "siglip"))
    again = Showo2.from_pretrained(tmp_path / "out")
    assert equal(model, again)


def test_the_released_code_knows_one_output_order(tmp_path):
    with pytest.raises(ValueError, match="output order is 'patch'.*save_pretrained"):
        checkpoint.save_released(random_model(replace(small_config(), order="patch")), tmp_path, "a/b", "c/d")


def test_a_hub_id_is_fetched_at_its_revision(tmp_path, model, monkeypatch):
    """From the Hub's own local cache: what a download leaves there is what an id finds offline."""
    cache = tmp_path / "models--owner--small"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        model.projector.bias.data.fill_(len(revision))
        model.save_pretrained(cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / revision).write_text(commit)
    monkeypatch.setattr(weights, "snapshot_download", partial(snapshot_download, cache_dir=tmp_path))
    assert Showo2.from_pretrained("owner/small").projector.bias[0] == len("main")
    assert Showo2.from_pretrained("owner/small", revision="v2").projector.bias[0] == len("v2")


def test_shards_that_are_missing_or_elsewhere_are_named(tmp_path, model):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    first = min(tmp_path.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"names 1 shards that are not there: \['{first.name}'\]"):
        Showo2.from_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="names ../other.safetensors: shards lie beside their index"):
        Showo2.from_pretrained(tmp_path)
