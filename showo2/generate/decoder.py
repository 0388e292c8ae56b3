"""Text after text and pictures: greedy decoding with a key-value cache, rows of different length together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache

from showo2 import compat
from showo2.model import Showo2
from showo2.model.attention import dense_mask
from showo2.sequence import Document, length, pack
from showo2.text import SpecialTokens


@torch.inference_mode()
def greedy(model: Showo2, special: SpecialTokens, documents: Sequence[Document], max_new_tokens: int,
           on_token: Callable[[int, int], None] | None = None, *, released_spans: bool = False) -> list[list[int]]:
    """Ids that follow each document, its [EOS] or a [BOI] the last, or `max_new_tokens` of them.

    `on_token(row, id)` hears of every id of a text as it is made. released_spans: see `compat.shift_spans`.
    """
    lengths = [length(document) for document in documents]
    device = next(model.parameters()).device
    packed = pack([[document] for document in documents], max(lengths), special).to(device)
    packed = compat.shift_spans(packed) if released_spans else packed
    position = torch.tensor(lengths, device=device)[:, None]
    doc, span, own = packed.doc, packed.span, packed.doc[:, :1]
    cache = DynamicCache()
    hidden = model.language(model.embed(packed)[0], dense_mask(doc, span), packed.position, cache)
    last = hidden[torch.arange(len(lengths), device=device), position[:, 0] - 1]
    answers: list[list[int]] = [[] for _ in documents]
    running = set(range(len(answers)))
    for step in range(max_new_tokens):
        tokens = model.logits(last).argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            if row not in running:
                continue
            answers[row].append(token)
            if token in (special.eos, special.boi):
                running.discard(row)
            elif on_token is not None:
                on_token(row, token)
        if not running or step + 1 == max_new_tokens:
            break
        doc, span = torch.cat([doc, own], 1), torch.cat([span, torch.zeros_like(own)], 1)
        mask = dense_mask(doc, span, slice(-1, None))
        last = model.language(model.embed_text(tokens[:, None]), mask, position + step, cache)[:, 0]
    return answers


def without_end(special: SpecialTokens, ids: list[int]) -> list[int]:
    """`ids` as `greedy` makes them, without the [EOS] or [BOI] at their end."""
    return ids[:-1] if ids and ids[-1] in (special.eos, special.boi) else ids
