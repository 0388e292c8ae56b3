"""Unified sequences: documents of text and media, and their packing into fixed-length rows (section 3.1).

`[BOS] text [BOI] time+image [EOI] text ... [EOS]`, with `[BOV]`/`[EOV]` around a video. A visual span is one time
token followed by its T*h*w/4 visual tokens.
Shape suffixes: B rows, L context, n media of one latent bucket, C channels, T frames, h and w latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from showo2.flow import PATCH
from showo2.text import SpecialTokens, Tokenizer
from showo2.vae import CHANNELS

IGNORE = -100


@dataclass(frozen=True)
class Text:
    """Token ids; where `supervised`, each is a next-token target."""

    ids: list[int]
    supervised: bool = False


@dataclass(frozen=True)
class Media:
    """An image (T = 1) or a video: clean normalised latents (C, T, h, w), float.

    `t` is its flow time (1.0: clean), `noise` its x0 (same shape; None where clean), `target` whether the flow loss
    is taken on it.
    """

    latents: Tensor
    t: float = 1.0
    noise: Tensor | None = None
    target: bool = False

    def __post_init__(self) -> None:
        if self.latents.dim() != 4 or any(side % PATCH for side in self.latents.shape[2:]):
            raise ValueError(f"latents of shape {tuple(self.latents.shape)}: expected (C, T, h, w), h and w even")

    @property
    def video(self) -> bool:
        """Whether it has several latent frames."""
        return self.latents.shape[1] > 1

    @property
    def tokens(self) -> int:
        """Length of the visual span, its time token included."""
        _, t, h, w = self.latents.shape
        return 1 + t * (h // PATCH) * (w // PATCH)


Document = Sequence[Text | Media]


def length(document: Document) -> int:
    """Tokens that a document takes in a row."""
    return sum(len(part.ids) if isinstance(part, Text) else part.tokens for part in document)


def _brackets(special: SpecialTokens, video: bool) -> tuple[int, int]:
    return (special.bov, special.eov) if video else (special.boi, special.eoi)


def opened(special: SpecialTokens, document: Document, video: bool) -> Document:
    """What stands before a picture or a video that follows `document`."""
    return [*document, Text([_brackets(special, video)[0]])]


def text_to_image(special: SpecialTokens, caption: list[int], media: Media) -> Document:
    """Generation: [BOS] caption [BOI] image [EOI] [EOS], no text target; an empty caption is the null condition."""
    opening, closing = _brackets(special, media.video)
    return [Text([special.bos, *caption, opening]), media, Text([closing, special.eos])]


def captioning(special: SpecialTokens, media: Media, caption: list[int]) -> Document:
    """Understanding of a pair: [BOS] [BOI] image [EOI] caption [EOS], all text supervised."""
    opening, closing = _brackets(special, media.video)
    return [Text([special.bos, opening], True), media, Text([closing, *caption, special.eos], True)]


def interleaved(special: SpecialTokens, segments: Sequence[list[int] | Media], flag: Sequence[int] = ()) -> Document:
    """A document of texts and media in order: [BOS] flag text [BOI] image [EOI] text ... [EOS], all text supervised.

    `flag` names the kind of document to the model and is no target.
    """
    parts: list[Text | Media] = [Text([special.bos], True), Text(list(flag))]
    for segment in segments:
        if isinstance(segment, Media):
            opening, closing = _brackets(special, segment.video)
            parts += [Text([opening], True), segment, Text([closing], True)]
        else:
            parts.append(Text(segment, True))
    return [*parts, Text([special.eos], True)]


def conversation(tokenizer: Tokenizer, messages: list[dict[str, str]], media: Media | None, style: str) -> Document:
    """A LLaVA conversation, answers (and the end token after each) supervised.

    `messages` are `{"from": "human" | "gpt", "value": text}`; `<image>` or `<video>` in the first question is where the
    picture or clip stands; it always goes first. Style "chat" is Qwen's template with system prompt and roles (the paper's stages 2b
    and 2c); "pretrain" is [BOS] [BOI] image [EOI] answer [EOS] question answer [EOS], the image being the first
    question (stage 2a); "plain" is the same with the first question kept, and a space after each.
    A last message from "human" leaves the answer open, as generation needs it.
    """
    if style not in ("chat", "pretrain", "plain"):
        raise ValueError(f"conversation style {style!r}: use 'chat', 'pretrain' or 'plain'")
    special, encode, chat = tokenizer.special, tokenizer.encode, style == "chat"
    newline = encode("\n") if chat else []
    parts: list[Text | Media] = []
    if chat:
        system = encode("system\nYou are a helpful assistant.")
        parts.append(Text([special.bos, *system, special.eos, *newline]))
    else:
        parts.append(Text([special.bos]))
    for i, message in enumerate(messages):
        value = message["value"].replace("<image>", "").replace("<video>", "").strip()
        if message["from"] == "human":
            if chat:
                parts.append(Text([special.bos, *encode("user\n")]))
            if media is not None and i == 0:
                opening, closing = _brackets(special, media.video)
                parts += [Text([opening]), media, Text([closing, *newline])]
            ending = [special.eos, *newline, special.bos, *encode("assistant\n")] if chat else []
            if style == "pretrain" and media is not None and i == 0:
                value = ""
            parts.append(Text([*encode(value + " " if style == "plain" else value), *ending]))
        elif message["from"] == "gpt":
            parts.append(Text([*encode(value), special.eos], True))
            if chat and i + 1 < len(messages):
                parts.append(Text(newline))
        else:
            raise ValueError(f"message {i} is from {message['from']!r}: use 'human' or 'gpt'")
    return parts


@dataclass(frozen=True)
class Visuals:
    """The media of one latent bucket in a packed batch.

    latents, noise: (n, C, T, h, w) float; t: (n,) float; target: (n,) bool; start: (n,) int64, flat index of each
    time token in B*L; flow_start: (n,) int64, the same in the flow head's shorter rows (-1 where it sees no use).
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    target: Tensor
    start: Tensor
    flow_start: Tensor


@dataclass(frozen=True)
class Packed:
    """Documents packed into B rows of L tokens.

    ids, labels (already shifted: labels[i] is the target of position i), doc, span, position: (B, L) int64.
    doc is unique in the whole batch (negative: padding); span is 0 for text, else 1 + the index of the medium in the
    order of `visuals`; position counts from 0 in each document.
    flow: (B, F) int64 columns that the flow head reads, -1 padding: documents with a flow target, up to the end of
    their last target (what follows cannot change it).
    """

    ids: Tensor
    labels: Tensor
    doc: Tensor
    span: Tensor
    position: Tensor
    flow: Tensor
    visuals: list[Visuals]

    @property
    def targets(self) -> tuple[int, int]:
        """How many text targets there are, and how many elements of velocity targets."""
        velocity = sum(int(v.target.sum()) * v.latents.shape[1:].numel() for v in self.visuals)
        return int((self.labels != IGNORE).sum()), velocity

    def to(self, device: torch.device | str) -> Packed:
        """The same batch on another device."""
        def move(item):
            return replace(item, **{f.name: getattr(item, f.name).to(device) for f in fields(item)
                                    if isinstance(getattr(item, f.name), Tensor)})

        return replace(move(self), visuals=[move(v) for v in self.visuals])


@dataclass
class _Placed:
    media: Media
    row: int
    column: int
    flow_column: int = -1


def _round_up(n: int, context: int) -> int:
    # FlexAttention wants whole blocks of 128; the tiny contexts would only pad with them.
    multiple = 128 if context > 512 else 16
    return min(context, -(-max(n, 1) // multiple) * multiple)


def pack(rows: Sequence[Sequence[Document]], context: int, special: SpecialTokens,
         shapes: Sequence[tuple[int, ...]] = ()) -> Packed:
    """Lay `rows` of documents out as one batch; a row longer than `context` is an error.

    `shapes`: latent shapes (C, T, h, w) that get `Visuals` also where there is no medium of them: every rank must run
    the same modules.
    """
    b = len(rows)
    ids = torch.full((b, context), special.pad)
    labels = torch.full((b, context), IGNORE)
    doc = -1 - torch.arange(b)[:, None].repeat(1, context)
    position = torch.zeros(b, context, dtype=torch.int64)
    placed: list[_Placed] = []
    flows: list[list[int]] = []
    number = 0
    for r, documents in enumerate(rows):
        column = 0
        flow: list[int] = []
        for document in documents:
            size = length(document)
            if column + size > context:
                raise ValueError(f"row {r} holds {column + size} tokens or more, but the context is {context}")
            number += 1
            doc[r, column:column + size] = number
            position[r, column:column + size] = torch.arange(size)
            start, media = column, []
            for part in document:
                if isinstance(part, Text):
                    ids[r, column:column + len(part.ids)] = torch.tensor(part.ids, dtype=torch.int64)
                    if part.supervised:
                        first = max(column, start + 1)
                        labels[r, first - 1:column + len(part.ids) - 1] = torch.tensor(
                            part.ids[first - column:], dtype=torch.int64)
                    column += len(part.ids)
                else:
                    ids[r, column:column + part.tokens] = special.video_pad if part.video else special.image_pad
                    media.append(_Placed(part, r, column))
                    column += part.tokens
            end = max((m.column + m.media.tokens for m in media if m.media.target), default=start)
            for m in media:
                if m.column < end:
                    m.flow_column = len(flow) + m.column - start
            flow.extend(range(start, end))
            placed += media
        flows.append(flow)
    f = _round_up(max((len(flow) for flow in flows), default=0), context)
    flow_columns = torch.full((b, f), -1)
    for r, flow in enumerate(flows):
        flow_columns[r, :len(flow)] = torch.tensor(flow, dtype=torch.int64)
    span, visuals = _group(placed, b, context, f, shapes)
    return Packed(ids, labels, doc, span, position, flow_columns, visuals)


def _group(placed: list[_Placed], b: int, context: int, f: int,
           shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, list[Visuals]]:
    """Media by latent bucket; never an empty list, so that every rank runs every module (FSDP's collectives)."""
    buckets: dict[tuple[int, ...], list[_Placed]] = {tuple(shape): [] for shape in shapes}
    for item in placed:
        buckets.setdefault(tuple(item.media.latents.shape), []).append(item)
    span = torch.zeros(b, context, dtype=torch.int64)
    visuals, number = [], 0
    for shape, items in sorted(buckets.items()):
        if not items:
            visuals.append(_no_visuals(shape))
            continue
        for item in items:
            number += 1
            span[item.row, item.column:item.column + item.media.tokens] = number
        latents = torch.stack([item.media.latents.float() for item in items])
        noise = torch.stack([torch.zeros_like(x) if i.media.noise is None else i.media.noise.float()
                             for i, x in zip(items, latents, strict=True)])
        visuals.append(Visuals(
            latents, noise,
            torch.tensor([i.media.t for i in items], dtype=torch.float32),
            torch.tensor([i.media.target for i in items]),
            torch.tensor([i.row * context + i.column for i in items]),
            torch.tensor([i.row * f + i.flow_column if i.flow_column >= 0 else -1 for i in items])))
    return span, visuals or [_no_visuals((CHANNELS, 1, PATCH, PATCH))]


def _no_visuals(shape: tuple[int, ...]) -> Visuals:
    none, empty = torch.zeros(0, dtype=torch.int64), torch.zeros(0, *shape)
    return Visuals(empty, empty, torch.zeros(0), none.bool(), none, none)
