"""Mixtures: which entry each sample of the global stream comes from.

The ratio holds in every window, not only on average: in one period (as many samples as the weights' sum) the j-th of
an entry's w samples sits at (j + 1/2)/w, the most even spread there is. Where a sample comes from is a pure function
of its position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from showo2.shards import Shard
from showo2.shards.format import Bucket

Task = Literal["generate", "animate", "caption", "converse", "tell", "read", "distill"]


@dataclass(frozen=True)
class Entry:
    """One ingredient of a mixture: rows of a kind, turned into documents of a task.

    task: what is learned: `generate` a picture or clip from its caption, `animate` a clip's first picture, `caption` a
    picture or clip, `converse` about one, `tell` an interleaved document (its texts and its pictures), `read` text alone,
    `distill` SigLIP.
    samples: how many of them are in each global batch. sources: only rows of these sources (empty: all).
    bucket: latent frames, height and width (None: the pictures of the stage); any number of frames for `interleaved`,
    whose frames are pictures.
    """

    name: str
    task: Task
    kind: Literal["pair", "conversation", "interleaved", "text"]
    samples: int
    sources: tuple[str, ...] = ()
    bucket: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.task == "animate" and (self.bucket is None or self.bucket[0] < 2):
            raise ValueError(f"entry {self.name!r}: only clips can be animated, and its bucket is {self.bucket}; "
                             "give one of several latent frames, for example (5, 54, 54)")

    def wants(self, shard: Shard, bucket: Bucket) -> bool:
        """Whether the shard's rows belong to this entry; `bucket` is that of the stage's pictures."""
        height_width = (self.bucket or bucket)[1:]
        fits = (shard.bucket[1:] == height_width if self.kind == "interleaved" else
                self.kind == "text" or shard.bucket == (self.bucket or bucket))
        return fits and shard.kind == self.kind and (not self.sources or shard.source in self.sources)


class Interleave:
    """The endless interleaving of entries by integer weights."""

    def __init__(self, weights: Mapping[str, int]):
        used = {name: weight for name, weight in weights.items() if weight}
        if not used or min(used.values()) < 0:
            raise ValueError(f"mixture weights {dict(weights)}: need whole numbers >= 0, one of them above 0")
        unit = gcd(*used.values())
        self.names = tuple(used)
        self.weights = tuple(weight // unit for weight in used.values())
        self.period = sum(self.weights)
        slots = sorted(((2 * j + 1) / (2 * w), e, j) for e, w in enumerate(self.weights) for j in range(w))
        self._entry = np.array([e for _, e, _ in slots])
        self._rank = np.array([j for _, _, j in slots])

    def locate(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Entry (index into `names`) and the sample's number within that entry, for positions of the stream."""
        turn, slot = np.divmod(position, self.period)
        entry = self._entry[slot]
        return entry, turn * np.array(self.weights)[entry] + self._rank[slot]

    def consumed(self, position: int) -> dict[str, int]:
        """Samples that each entry has given before `position`."""
        turn, slot = divmod(position, self.period)
        partial = np.bincount(self._entry[:slot], minlength=len(self.names))
        return {name: int(turn * w + p) for name, w, p in zip(self.names, self.weights, partial, strict=True)}


@dataclass(frozen=True)
class Cursor:
    """State of the data stream: what each entry has given, whatever ranks or workers read it.

    `base` is what was consumed under earlier weights; entries go on from there when a mixture changes.
    """

    weights: dict[str, int]
    consumed: dict[str, int] = field(default_factory=dict)
    base: dict[str, int] = field(default_factory=dict)

    def take(self, count: int) -> tuple[list[tuple[str, int]], Cursor]:
        """The next `count` samples as (entry, number within the entry), and the cursor after them."""
        stream, start = self._stream()
        entries, numbers = stream.locate(np.arange(start, start + count))
        samples = [(stream.names[e], int(n) + self.base.get(stream.names[e], 0))
                   for e, n in zip(entries, numbers, strict=True)]
        return samples, self.skip(count)

    def skip(self, count: int) -> Cursor:
        """The cursor after the next `count` samples; costs the same for any number."""
        stream, start = self._stream()
        after = {name: n + self.base.get(name, 0) for name, n in stream.consumed(start + count).items()}
        return Cursor(self.weights, {**self.consumed, **after}, self.base)

    def _stream(self) -> tuple[Interleave, int]:
        stream = Interleave(self.weights)
        return stream, sum(self.consumed.get(name, 0) - self.base.get(name, 0) for name in stream.names)

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Plain data for JSON, under 1 KB."""
        return {"weights": self.weights, "consumed": self.consumed, "base": self.base}

    @classmethod
    def load(cls, weights: Mapping[str, int], state: Mapping[str, dict[str, int]] | None) -> Cursor:
        """Go on from `state`, under the same weights or new ones."""
        weights = dict(weights)
        if state is None:
            return cls(weights)
        if state["weights"] == weights:
            return cls(weights, dict(state["consumed"]), dict(state["base"]))
        return cls(weights, dict(state["consumed"]), dict(state["consumed"]))
