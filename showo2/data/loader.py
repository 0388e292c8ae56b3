"""The loader: the same global batches whatever the ranks and workers, prepared in the background.

A step takes the next samples of the mixture, deals them to the ranks (and their micro-batches) by estimated work, and
each rank reads and packs only what it was dealt. A batch is a pure function of its step: no rank talks to another, and
worker processes take steps in turn.
"""

from __future__ import annotations

import itertools
import queue
import re
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from showo2.data.documents import Draws, Pairs, build, draw, teacher_pixels
from showo2.data.mixture import Cursor, Entry
from showo2.data.order import WINDOW
from showo2.data.packing import cost, deal, fill_rows
from showo2.data.sources import Source
from showo2.data.workers import AHEAD, by_workers
from showo2.flow import PATCH
from showo2.sequence import Document, Packed, length, pack
from showo2.shards import DamagedRow, Manifest, Row
from showo2.shards.format import Bucket
from showo2.store import Place
from showo2.text import Tokenizer
from showo2.vae import CHANNELS

_READ = 64  # rows at a time: their memory is recycled, that of a whole batch would come fresh from the kernel


@dataclass(frozen=True)
class Stream:
    """What a run reads: the data side of a recipe (see `train.recipe.Recipe` for the fields they share).

    bucket: latent frames, height and width of the pictures. width: of the language model, for the cost of a document.
    teacher_size: side of the teacher's pictures in pixels. noised_from: the step from which distillation inputs are
    noised. window: shards that an epoch mixes at a time. blocked: uids that are left out; a batch is smaller by them.
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
    window: int = WINDOW
    blocked: frozenset[str] = frozenset()

    @property
    def distills(self) -> bool:
        """Whether batches are `Pairs` rather than `Packed`."""
        return any(entry.task == "distill" for entry in self.mixture)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Latent shapes (C, T, h, w) that packed batches have; every rank's has all of them, also with no medium."""
        buckets = {(1, *(e.bucket or self.bucket)[1:]) if e.kind == "interleaved" else e.bucket or self.bucket
                   for e in self.mixture if e.samples and e.kind != "text"}
        return [(CHANNELS, *bucket) for bucket in sorted(buckets)]


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


def read_blocklist(path: str) -> frozenset[str]:
    """The uids of a file or URL, one a line (empty lines and what follows a # do not count); none for an empty path."""
    if not path:
        return frozenset()
    if (content := Place(path).read()) is None:
        raise ValueError(f"--blocklist {path}: no such file")
    lines = (line.partition("#")[0].strip().lower() for line in content.decode().splitlines())
    uids = frozenset(filter(None, lines))
    wrong = [uid for uid in sorted(uids) if not re.fullmatch("[0-9a-f]{32}", uid)]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]!r} is no uid; need 32 hex digits a line")
    return uids


class Batches:
    """One rank's batches by step: `batches[step]` reads and packs.

    `state` is the data stream's before step `first` (None: at its beginning).
    """

    def __init__(self, stream: Stream, manifests: Sequence[Manifest], tokenizer: Tokenizer, rank: int, world: int,
                 first: int, state: dict[str, Any] | None):
        self.stream, self.tokenizer, self.rank, self.world, self.first = stream, tokenizer, rank, world, first
        used = [entry for entry in stream.mixture if entry.samples]
        self.sources = {e.name: Source(e, manifests, stream.bucket, stream.seed, stream.window) for e in used}
        self._cursor = Cursor.load({entry.name: entry.samples for entry in used}, state)
        self._count = sum(entry.samples for entry in used)

    def __getitem__(self, step: int) -> Batch:
        """Raises ShardError where a file cannot be read; damaged rows are left out and named."""
        taken, after = self._cursor.skip((step - self.first) * self._count).take(self._count)
        samples = self._locate(taken)
        groups = deal([self._estimate(s) for s in samples], self.world * self.stream.accumulate)
        mine = groups[self.rank * self.stream.accumulate:(self.rank + 1) * self.stream.accumulate]
        uids: list[str] = []
        lost: list[str] = []
        made = [self._make(step, [samples[i] for i in group], uids, lost) for group in mine]
        return Batch([micro for micro, _ in made], uids, lost, sum(tokens for _, tokens in made), after.state_dict())

    def _locate(self, taken: list[tuple[str, int]]) -> list[_Sample]:
        numbers: dict[str, list[int]] = {name: [n for other, n in taken if other == name] for name in self.sources}
        places = {name: iter(self.sources[name].places(n).tolist()) for name, n in numbers.items()}
        samples = [_Sample(self.sources[name].entry, number, next(places[name])) for name, number in taken]
        blocked = self.stream.blocked
        return [s for s in samples if not blocked or self.sources[s.entry.name].uid(s.place) not in blocked]

    def _estimate(self, sample: _Sample) -> float:
        """Work of a sample, from the bytes of its text: dealing does not wait for the tokenizer."""
        source = self.sources[sample.entry.name]
        _, frames, height, width = source.shape(sample.place)
        tokens = frames * (height // PATCH) * (width // PATCH)
        if not self.stream.distills:
            try:
                text = source.text(sample.place)
                tokens += len(text.text or text.messages) // 4
            except DamagedRow:
                pass  # Whoever is dealt this row will name it.
        return cost(min(tokens, self.stream.context), self.stream.width)

    def _make(self, step: int, samples: list[_Sample], uids: list[str],
              lost: list[str]) -> tuple[Packed | Pairs, int]:
        rows: list[tuple[_Sample, Row]] = []
        for sample, row in zip(samples, self._read(samples), strict=True):
            if isinstance(row, DamagedRow):
                lost.append(str(row))
            else:
                rows.append((sample, row))
        frames = [row.latents.shape[1] if sample.entry.task == "tell" else 1 for sample, row in rows]
        draws = draw(self.stream.seed, [(sample.entry.name, sample.number) for sample, _ in rows],
                     [tuple(row.latents.shape) for _, row in rows], frames)
        read = [(sample, row, drawn) for (sample, row), drawn in zip(rows, draws, strict=True)]
        if self.stream.distills:
            uids.extend(row.uid for _, row, _ in read)
            tokens = sum(row.latents[0].numel() // PATCH**2 for _, row, _ in read)
            return self._pairs(step, [(row, draws) for _, row, draws in read]), tokens
        return self._pack(read, uids, lost)

    def _read(self, samples: list[_Sample]) -> list[Row | DamagedRow]:
        """Rows in the order of `samples`, read by source."""
        places: dict[str, list[int]] = {}
        for sample in samples:
            places.setdefault(sample.entry.name, []).append(sample.place)
        rows = {name: iter([row for i in range(0, len(some), _READ)
                            for row in self.sources[name].read(some[i:i + _READ])]) for name, some in places.items()}
        return [next(rows[sample.entry.name]) for sample in samples]

    def _pack(self, read: list[tuple[_Sample, Row, Draws]], uids: list[str], lost: list[str]) -> tuple[Packed, int]:
        s, documents = self.stream, list[Document]()
        for sample, row, draws in read:
            try:
                document = build(sample.entry.task, row, draws, self.tokenizer, s.context, s.style, s.caption_dropout)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                lost.append(f"uid {row.uid} of {row.source}: {sample.entry.task} cannot read its text: {error}")
                continue
            if document is None:
                lost.append(f"uid {row.uid} of {row.source}: nothing to learn fits a context of {s.context} tokens")
            else:
                documents.append(document)
                uids.append(row.uid)
        lengths = [length(document) for document in documents]
        rows = [[documents[i] for i in row] for row in fill_rows(lengths, s.context)]
        # A rank that was dealt nothing still runs the model, on padding, for the sake of the others' collectives.
        return pack(rows or [[]], s.context, self.tokenizer.special, s.shapes), sum(lengths)

    def _pairs(self, step: int, read: list[tuple[Row, Draws]]) -> Pairs:
        s = self.stream
        _, height, width = s.bucket
        if not read:
            none = torch.zeros(0, CHANNELS, height, width)
            return Pairs(none, none, torch.zeros(0), torch.zeros(0, 3, s.teacher_size, s.teacher_size))
        noised = s.noised if step >= s.noised_from else 0.0
        return Pairs(
            torch.stack([row.latents[:, 0].float() for row, _ in read]),
            torch.stack([draws.noise[:, 0] for _, draws in read]),
            torch.tensor([draws.times[0] if draws.noised < noised else 1.0 for _, draws in read]),
            teacher_pixels([row.teacher for row, _ in read if row.teacher], s.teacher_size))


class Loader:
    """Endless batches from `step` on, prepared by a thread, or by `workers` processes.

    `state` is the data stream's after the step before (None: the beginning).
    """

    def __init__(self, stream: Stream, manifests: Sequence[Manifest], tokenizer: Tokenizer, rank: int = 0,
                 world: int = 1, step: int = 0, state: dict[str, Any] | None = None, workers: int = 0):
        self.batches = Batches(stream, manifests, tokenizer, rank, world, step, state)
        self.workers = workers
        self._stop = threading.Event()
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(AHEAD)
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._prepared: Generator[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self._prepared = (by_workers(self.batches, itertools.count(self.batches.first), self.workers) if self.workers
                          else self._from_thread())
        return self._prepared

    def close(self) -> None:
        """Stop preparing batches."""
        self._stop.set()
        if self._prepared:
            self._prepared.close()
        if self._thread.is_alive():
            self._thread.join()

    def _from_thread(self) -> Generator[Batch]:
        self._thread.start()
        while True:
            item = self._queue.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def _run(self) -> None:
        try:
            for step in itertools.count(self.batches.first):
                if self._stop.is_set():
                    return
                self._put(self.batches[step])
        except Exception as error:  # noqa: BLE001 (the consumer raises it)
            self._put(error)

    def _put(self, item: Batch | Exception) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
