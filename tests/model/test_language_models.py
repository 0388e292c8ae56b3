"""Base language models of several families behind one attention function."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoModelForCausalLM

from showo2.model import Showo2, attention
from showo2.model import model as module
from showo2.sequence import pack
from tests.model.conftest import SPECIAL, random_model, small_config
from tests.model.test_model import TEXT, draw, read

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 96, "vocab_size": 300}
FAMILIES = {
    "Qwen2.5": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6},
    "Qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16},
    "Llama 3.2": {"model_type": "llama", "tie_word_embeddings": True, "rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}},
    "SmolLM2": {"model_type": "llama", "tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1,
                "rms_norm_eps": 1e-5},
}


@pytest.fixture(params=FAMILIES)
def family(request) -> Showo2:
    """A small random model on a language model of each family."""
    return random_model(replace(small_config(), llm=SIZES | FAMILIES[request.param])).eval()


def test_text_alone_is_read_as_the_language_model_reads_it(family):
    ids = torch.arange(10, 40).view(2, 15)
    position = torch.arange(15).expand(2, 15)
    doc = torch.tensor([[1], [2]]).expand(2, 15)
    config = copy.deepcopy(family.language_model.config)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    theirs.load_state_dict(family.language_model.state_dict())
    hidden = family.language(family.embed_text(ids), attention.dense_mask(doc, torch.zeros_like(doc)), position)
    torch.testing.assert_close(family.logits(hidden), theirs(ids).logits, atol=2e-5, rtol=0)


def test_losses_and_gradients_do_not_depend_on_the_kind_of_mask(family, monkeypatch):
    # Eager FlexAttention says what the compiled one computes (test_attention.py); neither has a backward on a CPU.
    monkeypatch.setattr(attention, "_compiled_flex", flex_attention)
    packed = pack([[draw(0), read(1), TEXT], [draw(2)]], 128, SPECIAL)
    losses, gradients = [], []
    for make in (attention.dense_mask, attention.document_mask, attention.block_mask):
        monkeypatch.setattr(module, "make_mask", make)
        with torch.set_grad_enabled(make is not attention.block_mask):
            out = family(packed)
        losses.append(torch.stack([out.ntp, out.flow]))
        if out.flow.requires_grad:
            family.zero_grad()
            losses[-1].sum().backward()
            gradients.append({name: p.grad for name, p in family.named_parameters()})
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-5, atol=0)
    whole = torch.stack([gradient.norm() for gradient in gradients[0].values()]).norm()
    for name, gradient in gradients[0].items():
        # A bias of keys has no gradient but rounding.
        assert (gradients[1][name] - gradient).norm() < 1e-4 * gradient.norm().clamp(1e-3 * whole), name


def test_round_trip(family, tmp_path):
    family.save_pretrained(tmp_path)
    again = Showo2.from_pretrained(tmp_path)
    packed = pack([[draw(0), read(1)]], 128, SPECIAL)
    before, after = family(packed), again(packed)
    assert before.ntp == after.ntp and before.flow == after.flow
