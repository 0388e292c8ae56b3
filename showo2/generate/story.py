"""Stories: texts and pictures in turn, each made from all that stands before it (section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from showo2.generate.decoder import greedy, without_end
from showo2.generate.sampler import Sampling, sample
from showo2.model import Showo2
from showo2.sequence import Document, Media, interleaved
from showo2.text import SpecialTokens

Segment = list[int] | Media


def tell(model: Showo2, special: SpecialTokens, histories: Sequence[Sequence[Segment]],
         noise: Callable[[int, int], Tensor], sampling: Sampling, pictures: int, max_new_tokens: int) -> list[list[Segment]]:
    """What follows each history: a text until its [BOI], a picture, a text, ...

    A story ends at its [EOS], with its picture number `pictures`, or with a text that reaches `max_new_tokens`. Pictures
    become clean context, as in training. noise(i, k): latents (C, 1, h, w), of picture k of story i. Every text
    and every picture reads what is before it anew: a story of four pictures costs 4 + 4 such passes, next to some hundred Euler
    steps.
    """
    told: list[list[Segment]] = [[] for _ in histories]
    running = list(range(len(histories)))

    def so_far(rows: list[int]) -> list[Document]:
        return [interleaved(special, [*histories[i], *told[i]])[:-1] for i in rows]

    for number in range(pictures):
        drawing = []
        for i, ids in zip(running, greedy(model, special, so_far(running), max_new_tokens), strict=True):
            if text := without_end(special, ids):
                told[i].append(text)
            if ids[-1] == special.boi:
                drawing.append(i)
        if not drawing:
            break
        start = torch.stack([noise(i, number) for i in drawing])
        latents = sample(model, special, so_far(drawing), start, sampling).cpu()
        for i, x in zip(drawing, latents, strict=True):
            told[i].append(Media(x))
        running = drawing
    return told
