"""One object that draws and answers, loaded as Hugging Face users expect."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from showo2.flow import PATCH
from showo2.generate.decoder import greedy, without_end
from showo2.generate.sampler import Sampling, sample, start_noise
from showo2.generate.story import Segment, tell
from showo2.model import Showo2
from showo2.sequence import Document, Media, Text, conversation
from showo2.store import fetched
from showo2.text import Tokenizer
from showo2.vae import CHANNELS, SPATIAL, TEMPORAL, WanVAE, center_crop_resize, to_image, to_pixels

Told = str | Image.Image
Clip = Sequence[Image.Image]


class Showo2Pipeline:
    """A model, its tokenizer and its VAE.

    Results depend on the arguments alone: picture i of a call starts from noise drawn from (seed, first + i), so the
    batch size changes no more than the last bits of its arithmetic.
    """

    def __init__(self, model: Showo2, tokenizer: Tokenizer, vae: WanVAE):
        self.model, self.tokenizer, self.vae = model.eval().requires_grad_(False), tokenizer, vae

    @classmethod
    def from_pretrained(cls, spec: str | Path = "tiny:reference", device: str | None = None,
                        dtype: torch.dtype = torch.float32) -> Showo2Pipeline:
        """Load from a folder or URL that training exported to, a Hub id or `tiny:reference`; the config names the VAE.

        device: a GPU where there is one, unless told otherwise.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        spec = fetched(spec)
        model = Showo2.from_pretrained(spec, dtype=dtype).to(device)
        return cls(model, Tokenizer.from_pretrained(spec), WanVAE.from_pretrained(model.config.vae, device=device))

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    @cached_property
    def checkpoint_hash(self) -> str:
        """Hash (32 hex digits) of all that a result depends on: weights, sizes, words and VAE, whatever files hold them."""
        digest = hashlib.sha256(repr((self.model.config.to_dict(), self.vae.weights_hash)).encode())
        digest.update(repr(sorted(self.tokenizer.inner.get_vocab().items())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:32]

    def image(self, prompts: str | Sequence[str], guidance: float = 5.0, points: int = 50, seed: int = 0, *,
              size: int | None = None, batch: int = 16, first: int = 0,
              on_batch: Callable[[int], None] | None = None) -> list[Image.Image]:
        """Draw one square picture a prompt.

        guidance: 1 turns it off. points: of the time grid, so points - 1 steps. size: side in pixels, a multiple of
        16 (default: what the model was trained for). first: index of the first prompt, for calls that continue one
        another. on_batch(n) is told of n more finished pictures.
        """
        shape = self._shape(1, size)
        drawn = self._drawn(prompts, shape, Sampling(points, guidance), seed, batch, first, on_batch)
        return [frames[0] for frames in drawn]

    def video(self, prompts: str | Sequence[str], guidance: float = 5.0, points: int = 50, seed: int = 0, *,
              frames: int = 17, size: int | None = None, batch: int = 4, first: int = 0,
              on_batch: Callable[[int], None] | None = None) -> list[list[Image.Image]]:
        """Draw the frames of one square clip a prompt, which play 8 a second; otherwise as `image`.

        frames: 1 more than a multiple of 4 (17 is what training clips have).
        """
        shape = self._shape(_latent_frames(frames), size)
        return list(self._drawn(prompts, shape, Sampling(points, guidance), seed, batch, first, on_batch))

    def animate(self, images: Image.Image | Sequence[Image.Image], prompts: str | Sequence[str], guidance: float = 5.0,
                points: int = 50, seed: int = 0, *, frames: int = 17, batch: int = 4, first: int = 0,
                on_batch: Callable[[int], None] | None = None) -> list[list[Image.Image]]:
        """The frames of one clip a picture and prompt, which begins with the picture; otherwise as `video`.

        Pictures are cropped and resized to the model's size.
        """
        images = [images] if isinstance(images, Image.Image) else list(images)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} pictures and {len(prompts)} prompts: give one prompt a picture")
        shape = self._shape(_latent_frames(frames), None)
        return list(self._drawn(prompts, shape, Sampling(points, guidance), seed, batch, first, on_batch, images))

    def story(self, history: str | Sequence[Told], guidance: float = 5.0, points: int = 50, seed: int = 0, *,
              pictures: int = 4, max_new_tokens: int = 64) -> list[Told]:
        """What follows a text, or texts and pictures in turn: more of them, up to so many pictures (section 4.4)."""
        return self.stories([history], guidance, points, seed, pictures=pictures, max_new_tokens=max_new_tokens)[0]

    def stories(self, histories: Sequence[str | Sequence[Told]], guidance: float = 5.0, points: int = 50, seed: int = 0, *,
                pictures: int = 4, max_new_tokens: int = 64, batch: int = 16, first: int = 0,
                on_batch: Callable[[int], None] | None = None) -> list[list[Told]]:
        """One story a history; see `story` and `image`. A text of `max_new_tokens` ends its story."""
        if pictures < 1 or max_new_tokens < 1:
            raise ValueError(f"pictures={pictures}, max_new_tokens={max_new_tokens}: use 1 or more of each")
        sampling, shape, stories = Sampling(points, guidance), self._shape(1, None), []
        for rows in _batches(len(histories), batch):
            def noise(i: int, k: int, rows: range = rows) -> Tensor:
                return start_noise(seed, [f"{first + rows[i]}.{k}"], shape)[0].to(self.device)

            segments = [self._segments(histories[i]) for i in rows]
            told = tell(self.model, self.tokenizer.special, segments, noise, sampling, pictures, max_new_tokens)
            stories += [[self._shown(segment) for segment in story] for story in told]
            if on_batch is not None:
                on_batch(len(rows))
        return stories

    def answer(self, images: Image.Image | Sequence[Image.Image | Clip], questions: str | Sequence[str],
               max_new_tokens: int = 64, *, batch: int = 32,
               on_text: Callable[[int, str], None] | None = None) -> list[str]:
        """Answer one question a picture or clip (or many about one picture).

        A clip is a list of pictures, 1 more than a multiple of 4. on_text(row, piece) hears each answer's text as it is made.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        images = [images] * len(questions) if isinstance(images, Image.Image) else list(images)
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} pictures and {len(questions)} questions: give one question a picture")
        answers: list[str] = []
        for rows in _batches(len(questions), batch):
            shown = self._media([images[i] for i in rows])
            documents = [conversation(self.tokenizer, [{"from": "human", "value": questions[i]}], media,
                                      self.model.config.conversation)
                         for i, media in zip(rows, shown, strict=True)]
            stream = None if on_text is None else _Stream(self.tokenizer, rows.start, on_text)
            ids = greedy(self.model, self.tokenizer.special, documents, max_new_tokens, stream)
            answers += [self.tokenizer.decode(without_end(self.tokenizer.special, row)).strip() for row in ids]
        return answers

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures, cropped and resized to the model's size, to latents (n, C, 1, h, w): the normalised mean."""
        return self.vae.encode(self._pixels(images))

    def decode(self, latents: Tensor) -> list[list[Image.Image]]:
        """Latents (n, C, T, h, w) to the frames of each: 1 + 4 (T - 1)."""
        return [[to_image(frame) for frame in pixels.unbind(1)] for pixels in self.vae.decode(latents)]

    def _segments(self, history: str | Sequence[Told]) -> list[Segment]:
        history = [history] if isinstance(history, str) else history
        return [self.tokenizer.encode(part) if isinstance(part, str) else self._media([part])[0] for part in history]

    def _shown(self, segment: Segment) -> Told:
        if isinstance(segment, Media):
            return self.decode(segment.latents[None].to(self.device))[0][0]
        return self.tokenizer.decode(segment).strip()

    def _shape(self, latent_frames: int, size: int | None) -> tuple[int, int, int, int]:
        """(C, T, h, w) of latents of so many frames and a side of `size` pixels."""
        size = self.model.config.size if size is None else size
        if size <= 0 or size % (SPATIAL * PATCH):
            raise ValueError(f"size={size}: use a positive multiple of {SPATIAL * PATCH} pixels")
        return CHANNELS, latent_frames, size // SPATIAL, size // SPATIAL

    def _drawn(self, prompts: str | Sequence[str], shape: tuple[int, int, int, int], sampling: Sampling, seed: int,
               batch: int, first: int, on_batch: Callable[[int], None] | None,
               begin: Sequence[Image.Image] = ()) -> Iterator[list[Image.Image]]:
        """The frames of each prompt's clip; `begin`: the pictures that they begin with."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        special = self.tokenizer.special
        for rows in _batches(len(prompts), batch):
            noise = start_noise(seed, range(first + rows.start, first + rows.stop), shape).to(self.device)
            if begin:
                noise[:, :, :1] = self.encode([begin[i] for i in rows])
            documents: list[Document] = [[Text([special.bos, *self.tokenizer.encode(prompts[i])])] for i in rows]
            yield from self.decode(sample(self.model, special, documents, noise, sampling, held=1 if begin else 0))
            if on_batch is not None:
                on_batch(len(rows))

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        size = self.model.config.size
        return to_pixels([center_crop_resize(ImageOps.exif_transpose(image), (size, size))[0] for image in images])

    def _media(self, shown: Sequence[Image.Image | Clip]) -> list[Media]:
        """Pictures and clips as clean context."""
        pictures = [item for item in shown if isinstance(item, Image.Image)]
        latents = iter(self.encode(pictures).cpu() if pictures else ())
        return [Media(next(latents) if isinstance(item, Image.Image) else self._encode_clip(item)) for item in shown]

    def _encode_clip(self, frames: Clip) -> Tensor:
        _latent_frames(len(frames))
        return self.vae.encode(self._pixels(frames).transpose(0, 2))[0].cpu()


def _latent_frames(frames: int) -> int:
    if frames < 1 or frames % TEMPORAL != 1:
        raise ValueError(f"frames={frames}: use 1 more than a multiple of {TEMPORAL}, for example 17")
    return 1 + (frames - 1) // TEMPORAL


def _batches(total: int, batch: int) -> Iterator[range]:
    if batch < 1:
        raise ValueError(f"batch={batch}: use 1 or more")
    return (range(start, min(start + batch, total)) for start in range(0, total, batch))


class _Stream:
    """Turns ids into pieces of text; a character whose bytes are not all there yet waits for them."""

    def __init__(self, tokenizer: Tokenizer, first: int, on_text: Callable[[int, str], None]):
        self.tokenizer, self.first, self.on_text = tokenizer, first, on_text
        self.ids: dict[int, list[int]] = {}
        self.told: dict[int, str] = {}

    def __call__(self, row: int, token: int) -> None:
        ids = self.ids.setdefault(row, [])
        ids.append(token)
        text, told = self.tokenizer.decode(ids), self.told.get(row, "")
        if text != told and not text.endswith("\ufffd"):
            self.told[row] = text
            self.on_text(self.first + row, text[len(told):])
