"""From a stored row to what the model reads, with every random draw a pure function of the sample.

Noise, time and dropped captions come from a counter-based generator keyed by (seed, entry, number of the sample in
that entry), so a batch is the same on any number of ranks, and after any resume.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from showo2.data.mixture import Task
from showo2.data.order import make_key
from showo2.flow import training_time
from showo2.sequence import Document, Media, captioning, conversation, length, text_to_image
from showo2.shards import Row
from showo2.text import Tokenizer


@dataclass(frozen=True)
class Draws:
    """The random draws of one sample: `drop` and `noised` uniform in [0, 1), `t` a training time, `noise` x0."""

    drop: float
    noised: float
    t: float
    noise: Tensor


def draw(seed: int, entry: str, number: int, shape: tuple[int, ...]) -> Draws:
    """The draws of sample `number` of `entry`, noise float32 of `shape`."""
    key = np.array([make_key(seed, entry), number], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    drop, noised, u = rng.random(), rng.random(), rng.standard_normal()
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return Draws(drop, noised, float(training_time(torch.tensor(u))), noise)


def build(task: Task, row: Row, draws: Draws, tokenizer: Tokenizer, context: int, style: str,
          caption_dropout: float) -> Document | None:
    """The document of `row` for `task`, text cut so that it fits `context`; None where no answer would be left."""
    special = tokenizer.special
    if task == "generate":
        media = Media(row.latents.float(), draws.t, draws.noise, target=True)
        caption = [] if draws.drop < caption_dropout else tokenizer.encode(row.text.text)
        room = context - length(text_to_image(special, [], media))
        return text_to_image(special, caption[:room], media)
    media = Media(row.latents.float())
    if task == "caption":
        room = context - length(captioning(special, media, []))
        return captioning(special, media, tokenizer.encode(row.text.text)[:room])
    return _fitting_turns(tokenizer, row.text.conversation(), media, style, context)


def _fitting_turns(tokenizer: Tokenizer, messages: list[dict[str, str]], media: Media, style: str,
                   context: int) -> Document | None:
    """As many leading turns as fit, ending with an answer."""
    for stop in range(len(messages), 1, -1):
        if messages[stop - 1]["from"] == "gpt":
            document = conversation(tokenizer, messages[:stop], media, style)
            if length(document) <= context:
                return document
    return None


@dataclass(frozen=True)
class Pairs:
    """A distillation batch: latents and noise (n, C, h, w), t (n,), and the teacher's pixels (n, 3, H, W) in [-1, 1]."""

    latents: Tensor
    noise: Tensor
    t: Tensor
    pixels: Tensor

    def to(self, device: torch.device | str) -> Pairs:
        """The same batch on another device."""
        return Pairs(*(getattr(self, f.name).to(device) for f in fields(self)))


def teacher_pixels(jpeg: bytes, size: int) -> Tensor:
    """SigLIP's input from a stored crop: (3, size, size) float32 in [-1, 1]."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
