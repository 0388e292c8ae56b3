"""The loader: the same global batches whatever the ranks, prepared in the background.

A step takes the next samples of the mixture, deals them to the ranks (and their micro-batches) by estimated work, and
each rank reads and packs only what it was dealt. The plan needs no communication: every rank computes all of it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from showo2.data.documents import Draws, Pairs, build, draw, teacher_pixels
from showo2.data.mixture import Cursor, Entry
from showo2.data.packing import cost, deal, fill_rows
from showo2.data.sources import Source
from showo2.flow import PATCH
from showo2.sequence import Document, Packed, length, pack
from showo2.shards import DamagedRow, Manifest, Row
from showo2.shards.format import Bucket
from showo2.text import Tokenizer
from showo2.vae import CHANNELS

_AHEAD = 2


@dataclass(frozen=True)
class Stream:
    """What a run reads: the data side of a recipe (see `train.recipe.Recipe` for the fields they share).

    width: of the language model, for the cost of a document. teacher_size: side of the teacher's pictures in pixels.
    noised_from: the step from which distillation inputs are noised.
    """

    mixture: tuple[Entry, ...]
    bucket: Bucket
    context: int
    style: str
    seed: int
    width: int
    caption_dropout: float = 0.0
    noised: float = 0.0
    noised_from: int = 0
    teacher_size: int = 0
    accumulate: int = 1

    @property
    def distills(self) -> bool:
        """Whether batches are `Pairs` rather than `Packed`."""
        return any(entry.task == "distill" for entry in self.mixture)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step.

    micro: what the model reads, one item a micro-batch. uids: samples in it. lost: why samples that were dealt to
    this rank are not in it. tokens: in documents, padding left out. state: of the data stream, after this step.
    """

    micro: list[Packed | Pairs]
    uids: list[str]
    lost: list[str]
    tokens: int
    state: dict[str, Any]


@dataclass(frozen=True)
class _Sample:
    entry: Entry
    number: int
    place: int


class Loader:
    """Endless batches from `step` on; `state` is the data stream's after the step before (None: the beginning)."""

    def __init__(self, stream: Stream, manifests: Sequence[Manifest], tokenizer: Tokenizer, rank: int = 0,
                 world: int = 1, step: int = 0, state: dict[str, Any] | None = None):
        self.stream, self.tokenizer, self.rank, self.world = stream, tokenizer, rank, world
        used = [entry for entry in stream.mixture if entry.samples]
        self.sources = {e.name: Source(e, manifests, stream.bucket, stream.seed) for e in used}
        self._cursor = Cursor.load({entry.name: entry.samples for entry in used}, state)
        self._count = sum(entry.samples for entry in used)
        self._step = step
        _, height, width = stream.bucket
        self._visual = stream.bucket[0] * (height // PATCH) * (width // PATCH)
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def __iter__(self) -> Iterator[Batch]:
        self._thread.start()
        while True:
            item = self._queue.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        """Stop preparing batches."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._put(self.prepare())
        except Exception as error:  # noqa: BLE001 (the consumer raises it)
            self._put(error)

    def _put(self, item: Batch | Exception) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def prepare(self) -> Batch:
        """This rank's part of the next step."""
        taken, self._cursor = self._cursor.take(self._count)
        samples = self._locate(taken)
        groups = deal([self._estimate(s) for s in samples], self.world * self.stream.accumulate)
        mine = groups[self.rank * self.stream.accumulate:(self.rank + 1) * self.stream.accumulate]
        uids: list[str] = []
        lost: list[str] = []
        made = [self._make([samples[i] for i in group], uids, lost) for group in mine]
        self._step += 1
        return Batch([micro for micro, _ in made], uids, lost, sum(tokens for _, tokens in made),
                     self._cursor.state_dict())

    def _locate(self, taken: list[tuple[str, int]]) -> list[_Sample]:
        numbers: dict[str, list[int]] = {name: [n for other, n in taken if other == name] for name in self.sources}
        places = {name: iter(self.sources[name].places(n).tolist()) for name, n in numbers.items()}
        return [_Sample(self.sources[name].entry, number, next(places[name])) for name, number in taken]

    def _estimate(self, sample: _Sample) -> float:
        """Work of a sample, from the bytes of its text: dealing does not wait for the tokenizer."""
        tokens = self._visual
        if not self.stream.distills:
            try:
                text = self.sources[sample.entry.name].text(sample.place)
                tokens += len(text.text or text.messages) // 4
            except DamagedRow:
                pass  # Whoever is dealt this row will name it.
        return cost(min(tokens, self.stream.context), self.stream.width)

    def _make(self, samples: list[_Sample], uids: list[str], lost: list[str]) -> tuple[Packed | Pairs, int]:
        rows: list[tuple[_Sample, Row]] = []
        for sample in samples:
            try:
                rows.append((sample, self.sources[sample.entry.name].read(sample.place)))
            except DamagedRow as damage:
                lost.append(str(damage))
        shape = (CHANNELS, *self.stream.bucket)
        draws = draw(self.stream.seed, [(sample.entry.name, sample.number) for sample, _ in rows], shape)
        read = [(sample, row, drawn) for (sample, row), drawn in zip(rows, draws, strict=True)]
        if self.stream.distills:
            uids.extend(row.uid for _, row, _ in read)
            return self._pairs([(row, draws) for _, row, draws in read]), len(read) * self._visual
        return self._pack(read, uids, lost)

    def _pack(self, read: list[tuple[_Sample, Row, Draws]], uids: list[str], lost: list[str]) -> tuple[Packed, int]:
        s, documents = self.stream, list[Document]()
        for sample, row, draws in read:
            try:
                document = build(sample.entry.task, row, draws, self.tokenizer, s.context, s.style, s.caption_dropout)
            except (ValueError, KeyError, TypeError) as error:
                lost.append(f"uid {row.uid} of {row.source}: {sample.entry.task} cannot read its text: {error}")
                continue
            if document is None:
                lost.append(f"uid {row.uid} of {row.source}: no answer fits a context of {s.context} tokens")
            else:
                documents.append(document)
                uids.append(row.uid)
        lengths = [length(document) for document in documents]
        rows = [[documents[i] for i in row] for row in fill_rows(lengths, s.context)]
        # A rank that was dealt nothing still runs the model, on padding, for the sake of the others' collectives.
        return pack(rows or [[]], s.context, self.tokenizer.special), sum(lengths)

    def _pairs(self, read: list[tuple[Row, Draws]]) -> Pairs:
        s = self.stream
        _, height, width = s.bucket
        if not read:
            none = torch.zeros(0, CHANNELS, height, width)
            return Pairs(none, none, torch.zeros(0), torch.zeros(0, 3, s.teacher_size, s.teacher_size))
        noised = s.noised if self._step >= s.noised_from else 0.0
        return Pairs(
            torch.stack([row.latents[:, 0].float() for row, _ in read]),
            torch.stack([draws.noise[:, 0] for _, draws in read]),
            torch.tensor([draws.t if draws.noised < noised else 1.0 for _, draws in read]),
            teacher_pixels([row.teacher for row, _ in read if row.teacher], s.teacher_size))
