"""From a stored row to what the model reads, with every random draw a pure function of the sample.

Noise, time and dropped captions come from a counter-based generator keyed by (seed, entry, number of the sample in
that entry), so a batch is the same on any number of ranks, and after any resume.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
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
from showo2.vae import to_pixels


@dataclass(frozen=True)
class Draws:
    """The random draws of one sample: `drop` and `noised` uniform in [0, 1), `t` a training time, `noise` x0."""

    drop: float
    noised: float
    t: float
    noise: Tensor


def draw(seed: int, samples: Sequence[tuple[str, int]], shape: tuple[int, ...]) -> list[Draws]:
    """The draws of samples (entry, number within the entry), noise float32 of `shape`."""
    generators = [np.random.Generator(np.random.Philox(key=np.array([make_key(seed, entry), number], np.uint64)))
                  for entry, number in samples]
    uniform = [(rng.random(), rng.random()) for rng in generators]
    t = training_time(torch.tensor([rng.standard_normal() for rng in generators])).tolist()
    noise = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for rng in generators]
    return [Draws(drop, noised, *rest) for (drop, noised), *rest in zip(uniform, t, noise, strict=True)]


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


def teacher_pixels(jpegs: Sequence[bytes], size: int) -> Tensor:
    """SigLIP's input from n stored crops: (n, 3, size, size) float32 in [-1, 1]."""
    images = [Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB") for jpeg in jpegs]
    return to_pixels([image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
                      for image in images])[:, :, 0]
