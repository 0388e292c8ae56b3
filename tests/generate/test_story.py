"""Stories: each text and each picture is what whole sequences without a cache make of all that stands before it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from showo2 import flow
from showo2.generate.decoder import greedy
from showo2.generate.sampler import Sampling, start_noise
from showo2.generate.story import tell
from showo2.model.attention import dense_mask
from showo2.sequence import Media, Text, interleaved, length, pack
from showo2.text import SpecialTokens

IMAGE = (16, 1, 8, 8)
TOKENS = 16
SAMPLING = Sampling(4, 3.0)
HISTORIES = [[[5, 6]], [[9, 10, 11]], [[12], Media(torch.randn(IMAGE, generator=torch.Generator().manual_seed(4)))]]


def noise(i: int, k: int) -> torch.Tensor:
    return start_noise(0, [f"{i}.{k}"], IMAGE)[0]


@pytest.fixture(scope="module")
def special(model) -> SpecialTokens:
    """[BOI] is the third token that the first history goes on with, [EOS] the second of the second."""
    unused = SpecialTokens(280, -1, -2, *range(283, 289))
    first, second = greedy(model, unused, [interleaved(unused, history)[:-1] for history in HISTORIES[:2]], 4)
    assert first[2] not in first[:2] and second[1] not in (second[0], *first[:3])
    return replace(unused, boi=first[2], eos=second[1])


def plainly(model, special, history, pictures, steps, story):
    """One story, every token and every velocity from a whole sequence."""
    told = []
    for number in range(pictures):
        text = []
        while len(text) < steps and not {special.boi, special.eos} & set(text):
            packed = packed_of(special, [*interleaved(special, [*history, *told])[:-1], Text(text)])
            hidden = model.language(model.embed(packed)[0], dense_mask(packed.doc, packed.span), packed.position)
            text.append(int(model.logits(hidden[0, -1]).argmax()))
        spoken = [token for token in text if token not in (special.boi, special.eos)]
        told += [spoken] if spoken else []
        if text[-1] != special.boi:
            break
        x = noise(story, number)
        for t, following in pairwise(flow.sampling_times(SAMPLING.points)):
            v, null = (velocity(model, special, before, x, float(t)) for before in ([*history, *told], []))
            x = x + (following - t) * flow.guide(null, v, SAMPLING.guidance)
        told.append(Media(x))
    return told


def packed_of(special, document):
    return pack([[document]], length(document), special)


def velocity(model, special, before, x, t):
    document = interleaved(special, [*before, Media(x, t, x, target=True)])
    packed = packed_of(special, document)
    embeds, time = model.embed(packed)
    hidden = model.language(embeds, dense_mask(packed.doc, packed.span), packed.position)
    tokens = model.packed_velocity(hidden, time, packed)[0, length(document) - 2 - TOKENS:][:TOKENS]
    return flow.from_tokens(tokens[None], IMAGE[1:])[0]


@torch.inference_mode()
def test_a_story_is_that_of_whole_sequences(model, special):
    stories = tell(model, special, HISTORIES, noise, SAMPLING, pictures=2, max_new_tokens=6)
    assert any(isinstance(part, Media) for part in stories[0])
    assert [type(part) for part in stories[1]] == [list] and len(stories[1][0]) == 1  # it ends with its [EOS]
    for i, (history, story) in enumerate(zip(HISTORIES, stories, strict=True)):
        wanted = plainly(model, special, history, 2, 6, i)
        assert [type(part) for part in story] == [type(part) for part in wanted]
        for ours, theirs in zip(story, wanted, strict=True):
            if isinstance(ours, Media):
                torch.testing.assert_close(ours.latents, theirs.latents, atol=1e-4, rtol=1e-4)
                assert ours.t == 1.0 and not ours.target
            else:
                assert ours == theirs


@torch.inference_mode()
def test_it_ends_with_the_last_picture_asked_for(model, special):
    one = tell(model, special, HISTORIES[:1], noise, SAMPLING, pictures=1, max_new_tokens=6)[0]
    two = tell(model, special, HISTORIES[:1], noise, SAMPLING, pictures=2, max_new_tokens=6)[0]
    assert sum(isinstance(part, Media) for part in one) == 1 and isinstance(one[-1], Media)
    assert torch.equal(one[-1].latents, two[len(one) - 1].latents)
