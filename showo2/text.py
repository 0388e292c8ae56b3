"""The tokenizer of a Show-o2 model: any Hugging Face tokenizer plus the special tokens of unified sequences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from showo2.store import fetched
from showo2.tiny import resolve


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that delimit text, images and videos (Show-o2 section 3.1).

    `bos`/`eos` open and close a sample; `boi`/`eoi` stand around an image, `bov`/`eov` around a video; the pads
    fill positions whose embedding comes from elsewhere (a visual token) or from nowhere (padding).
    """

    bos: int
    eos: int
    boi: int
    eoi: int
    bov: int
    eov: int
    image_pad: int
    video_pad: int
    pad: int


# Qwen2.5 has the first six; the others are added in this order, which fixes their ids (151665, 151666, ...).
_NAMES = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "boi": "<|vision_start|>",
    "eoi": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "video_pad": "<|video_pad|>",
    "pad": "[PAD]",
    "image": "<image>",
    "bov": "<|vid_start|>",
    "eov": "<|vid_end|>",
}


class Tokenizer:
    """Text to ids and back; special tokens are never produced from text, so captions cannot forge structure."""

    def __init__(self, inner: PreTrainedTokenizerBase):
        known = inner.get_vocab()
        missing = [name for name in _NAMES.values() if name not in known]
        if missing:
            inner.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        self.inner = inner
        ids = {role: inner.convert_tokens_to_ids(name) for role, name in _NAMES.items() if role != "image"}
        self.special = SpecialTokens(**ids)

    @classmethod
    def from_pretrained(cls, spec: str | Path) -> Tokenizer:
        """Load from a folder, a Hub id, or a shipped part such as `tiny:llm`."""
        return cls(AutoTokenizer.from_pretrained(resolve(fetched(spec))))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files into `folder`."""
        self.inner.save_pretrained(folder)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without any special token."""
        return self.inner(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return self.inner.decode(ids, skip_special_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Rows that the embedding needs (151,669 for Qwen2.5)."""
        return len(self.inner)
