"""Greedy decoding with a cache equals running the whole sequence for each token."""

import torch

from showo2.generate.decoder import greedy
from showo2.model.attention import dense_mask
from showo2.sequence import Media, Text, length, pack
from showo2.text import SpecialTokens

SPECIAL = SpecialTokens(*range(280, 289))
NO_END = SpecialTokens(280, -1, *range(282, 289))


def documents():
    torch.manual_seed(1)
    pictures = [Media(torch.randn(16, 1, h, w)) for h, w in ((8, 8), (8, 8), (4, 8))]
    texts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
    read = [[Text([280, 282]), picture, Text([283, *ids])] for picture, ids in zip(pictures, texts, strict=True)]
    return [*read, [Text([280, 1, 2, 3])]]


def without_cache(model, document, steps):
    ids = []
    for _ in range(steps):
        packed = pack([[[*document, Text(ids)]]], length(document) + len(ids), NO_END)
        hidden = model.language(model.embed(packed)[0], dense_mask(packed.doc, packed.span), packed.position)
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
    return ids


@torch.inference_mode()
def test_cached_batch_equals_whole_sequences(model):
    asked = documents()
    answers = greedy(model, NO_END, asked, 8)
    assert answers == [without_cache(model, document, 8) for document in asked]
    assert len({tuple(ids) for ids in answers}) > 1


def test_rows_stop_at_their_own_end(model):
    asked = documents()
    free = greedy(model, NO_END, asked, 8)
    end = free[0][3]
    heard: dict[int, list[int]] = {}
    special = SpecialTokens(280, end, *range(282, 289))
    stopped = greedy(model, special, asked, 8, lambda row, token: heard.setdefault(row, []).append(token))
    assert stopped == [ids[:ids.index(end) + 1] if end in ids else ids for ids in free]
    assert [heard.get(row, []) for row in range(len(asked))] == [[i for i in ids if i != end] for ids in stopped]
