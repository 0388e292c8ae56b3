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
from showo2.sequence import Document, Media, captioning, conversation, interleaved, length, text_to_image
from showo2.shards import Row
from showo2.text import Tokenizer
from showo2.vae import to_pixels

ALL_NOISED = 0.3


@dataclass(frozen=True)
class Draws:
    """The random draws of one sample: `drop` and `noised` uniform in [0, 1), `noise` x0, and training times.

    times: one for a picture or a clip, one for each picture of an interleaved document.
    """

    drop: float
    noised: float
    times: tuple[float, ...]
    noise: Tensor


def draw(seed: int, samples: Sequence[tuple[str, int]], shapes: Sequence[tuple[int, ...]],
         times: Sequence[int]) -> list[Draws]:
    """The draws of samples (entry, number within the entry): float32 noise of each one's shape, and so many times."""
    generators = [np.random.Generator(np.random.Philox(key=np.array([make_key(seed, entry), number], np.uint64)))
                  for entry, number in samples]
    uniform = [(rng.random(), rng.random()) for rng in generators]
    normal = [rng.standard_normal(count) for rng, count in zip(generators, times, strict=True)]
    t = training_time(torch.from_numpy(np.concatenate([np.empty(0), *normal]))).split(list(times))
    noise = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
             for rng, shape in zip(generators, shapes, strict=True)]
    return [Draws(drop, noised, tuple(t.tolist()), x0)
            for (drop, noised), t, x0 in zip(uniform, t, noise, strict=True)]


def build(task: Task, row: Row, draws: Draws, tokenizer: Tokenizer, context: int, style: str,
          caption_dropout: float) -> Document | None:
    """The document of `row` for `task`, text cut so that it fits `context`; None where nothing to learn would be left."""
    special = tokenizer.special
    if task == "tell":
        return _fitting_segments(tokenizer, row, draws, context)
    if task == "read":
        if row.text.messages:
            return _fitting_turns(tokenizer, row.text.conversation(), None, style, context)
        return interleaved(special, [tokenizer.encode(row.text.text)[:context - 2]])
    if task in ("generate", "animate"):
        latents, noise = row.latents.float(), draws.noise
        if task == "animate":
            noise = begun(latents, noise)
        media = Media(latents, draws.times[0], noise, target=True)
        caption = [] if draws.drop < caption_dropout else tokenizer.encode(row.text.text)
        room = context - length(text_to_image(special, [], media))
        return text_to_image(special, caption[:room], media)
    media = Media(row.latents.float())
    if task == "caption":
        room = context - length(captioning(special, media, []))
        return captioning(special, media, tokenizer.encode(row.text.text)[:room])
    return _fitting_turns(tokenizer, row.text.conversation(), media, style, context)


def begun(latents: Tensor, noise: Tensor) -> Tensor:
    """Noise (C, T, h, w) of a clip whose first latent frame is given: at any t that frame is clean, and its velocity is 0.

    The released sampler holds the first frame in this way, at the clip's own t.
    """
    return torch.cat([latents[:, :1], noise[:, 1:]], 1)


def clean_history(pictures: int, draws: Draws) -> int:
    """How many of a document's first pictures stay clean (section 4.4).

    With probability 0.3 none; else 1 to all but the last, evenly.
    """
    return 0 if draws.noised < ALL_NOISED else min(1 + int(draws.drop * (pictures - 1)), pictures - 1)


def _fitting_segments(tokenizer: Tokenizer, row: Row, draws: Draws, context: int) -> Document | None:
    """As many leading segments as fit; of a text that fills the context by itself, its beginning."""
    clean = clean_history(row.latents.shape[1], draws)
    segments: list[list[int] | Media] = []
    for segment in row.text.conversation():
        if "text" in segment:
            segments.append(tokenizer.encode(segment["text"]))
        else:
            i = segment["image"]
            latents = row.latents[:, i:i + 1].float()
            segments.append(Media(latents) if i < clean else
                            Media(latents, draws.times[i], draws.noise[:, i:i + 1], target=True))
    if segments and not isinstance(segments[0], Media):
        segments[0] = segments[0][:context - length(interleaved(tokenizer.special, []))]
    while segments and length(interleaved(tokenizer.special, segments)) > context:
        segments.pop()
    return interleaved(tokenizer.special, segments) if segments else None


def _fitting_turns(tokenizer: Tokenizer, messages: list[dict[str, str]], media: Media | None, style: str,
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
