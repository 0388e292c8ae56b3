"""A checkpoint folder with random weights: what training exports, in miniature."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer as Words
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from showo2.model import FlowHeadConfig, Showo2, Showo2Config
from showo2.text import Tokenizer

LLM = {"model_type": "qwen2", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300, "tie_word_embeddings": True}
SIGLIP = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
          "image_size": 64, "patch_size": 16}
FLOW = FlowHeadConfig(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64)


def random_model(vae: str = "", **llm: object) -> Showo2:
    """Every parameter drawn, so that nothing stays hidden behind adaLN's zeros."""
    torch.manual_seed(0)
    model = Showo2(Showo2Config(LLM | llm, SIGLIP, FLOW, grid=4, conversation="plain", size=64, vae=vae))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 and p.mean() == 1 else 0.0, 0.1)
    return model.eval()


def byte_tokenizer() -> Tokenizer:
    """One id a byte, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Words(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=words))


def random_checkpoint(folder: Path) -> str:
    """Write model, tokenizer and VAE under `folder`; the path to load them from."""
    torch.manual_seed(1)
    AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1).save_pretrained(folder / "vae")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    random_model(str(folder / "vae"), vocab_size=tokenizer.vocab_size).save_pretrained(folder / "model")
    return str(folder / "model")
