"""Documents and packing: what must hold of any packing (the released layouts are in model/test_released_parity.py)."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo2.sequence import (
    IGNORE,
    Media,
    Text,
    captioning,
    conversation,
    length,
    pack,
    text_to_image,
)
from showo2.text import SpecialTokens

SPECIAL = SpecialTokens(*range(250, 259))
# A character is a token.
TOKENIZER = SimpleNamespace(special=SPECIAL, encode=lambda text: [ord(c) % 250 for c in text])
encode = TOKENIZER.encode


def image(frames: int = 1, t: float = 1.0, target: bool = False, side: int = 4) -> Media:
    return Media(torch.zeros(16, frames, side, side), t, None, target)


def test_an_open_question_ends_where_the_answer_starts():
    ask = [{"from": "human", "value": "what?"}]
    whole = conversation(TOKENIZER, [*ask, {"from": "gpt", "value": "cat"}], image(), "chat")
    asked = conversation(TOKENIZER, ask, image(), "chat")
    assert length(asked) == length(whole) - len("cat") - 1


def test_errors_name_the_thing():
    with pytest.raises(ValueError, match="latents of shape.*h and w even"):
        Media(torch.zeros(16, 1, 5, 4))
    with pytest.raises(ValueError, match="row 0 holds"):
        pack([[text_to_image(SPECIAL, encode("a long caption"), image())]], 16, SPECIAL)
    with pytest.raises(ValueError, match="style 'chatty'"):
        conversation(TOKENIZER, [], None, "chatty")
    with pytest.raises(ValueError, match="from 'robot'"):
        conversation(TOKENIZER, [{"from": "robot", "value": ""}], None, "chat")


parts = st.one_of(
    st.builds(Text, st.lists(st.integers(0, 249), min_size=1, max_size=6), st.booleans()),
    st.builds(image, st.sampled_from([1, 2]), st.sampled_from([0.3, 1.0]), st.booleans(), st.sampled_from([4, 6])))
documents = st.lists(parts, min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(documents, max_size=3), min_size=1, max_size=3))
def test_any_packing(rows):
    context = max(16, max(sum(map(length, row)) for row in rows))
    packed = pack(rows, context, SPECIAL)
    flat = [d for row in rows for d in row]
    media = [m for d in flat for m in d if isinstance(m, Media)]
    for number, document in enumerate(flat):
        own = packed.doc == number + 1
        assert int(own.sum()) == length(document)
        assert packed.position[own].tolist() == list(range(length(document)))
        supervised = [i for i, (_, s) in enumerate((x, p.supervised) for p in document if isinstance(p, Text)
                                                   for x in p.ids) if s]
        first = isinstance(document[0], Text) and document[0].supervised
        assert int((packed.labels[own] != IGNORE).sum()) == len(supervised) - first
    assert packed.targets == (int((packed.labels != IGNORE).sum()),
                              sum(m.latents.numel() for m in media if m.target))
    assert sum(len(v.t) for v in packed.visuals) == len(media)
    assert sum(int(v.target.sum()) for v in packed.visuals) == sum(m.target for m in media)
    number = 0
    for v in packed.visuals:
        tokens = 1 + v.latents.shape[2] * v.latents.shape[3] * v.latents.shape[4] // 4
        for start, flow_start, target in zip(v.start, v.flow_start, v.target, strict=True):
            number += 1
            places = start + torch.arange(tokens)
            assert (packed.span.flatten()[places] == number).all()
            assert not (target and flow_start < 0), "a target that the flow head never sees"
            if flow_start >= 0:
                row = int(start) // context
                columns = packed.flow.flatten()[flow_start + torch.arange(tokens)]
                assert torch.equal(columns + row * context, places)


def test_the_flow_head_reads_no_more_than_it_must():
    generation = text_to_image(SPECIAL, encode("a cat"), image(t=0.5, target=True))
    understanding = captioning(SPECIAL, image(), encode("a cat"))
    packed = pack([[understanding, generation]], 48, SPECIAL)
    before_eoi = length(generation) - 2
    assert int((packed.flow >= 0).sum()) == before_eoi
    assert packed.flow.shape[1] == 16
