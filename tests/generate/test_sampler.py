"""The sampler equals whole sequences without any cache (the released one's trajectories: tests/model)."""

from itertools import pairwise

import pytest
import torch

from showo2 import flow
from showo2.generate.sampler import Sampling, Velocity, sample, start_noise
from showo2.model.attention import dense_mask
from showo2.sequence import Document, Media, Text, interleaved, length, pack, text_to_image
from showo2.text import SpecialTokens

SPECIAL = SpecialTokens(*range(280, 289))
TEXTS = [[1, 2, 3, 4, 5, 6, 7], [9], [], [11, 12, 13]]
IMAGE, VIDEO, WIDE = (16, 1, 8, 8), (16, 3, 4, 4), (16, 1, 4, 12)


def prompts(texts: list[list[int]]) -> list[Document]:
    return [[Text([SPECIAL.bos, *ids])] for ids in texts]


def whole_sequence(model, texts, x, t):
    """Velocities from complete padded sequences, everything computed: the plain way."""
    documents = [text_to_image(SPECIAL, ids, Media(row, float(t), row, True)) for ids, row in zip(texts, x, strict=True)]
    packed = pack([[d] for d in documents], max(length(d) for d in documents) + 5, SPECIAL)
    embeds, time = model.embed(packed)
    hidden = model.language(embeds, dense_mask(packed.doc, packed.span), packed.position)
    velocity = model.packed_velocity(hidden, time, packed).flatten(0, 1)
    v = packed.visuals[0]
    frames, h, w = v.latents.shape[2:]
    tokens = velocity[v.flow_start[:, None] + 1 + torch.arange(frames * h * w // 4)]
    return flow.from_tokens(tokens, (frames, h, w))


@pytest.mark.parametrize("shape", [IMAGE, VIDEO, WIDE])
@torch.inference_mode()
def test_cached_velocity_equals_whole_sequences(model, shape):
    x = start_noise(0, range(len(TEXTS)), shape)
    velocity = Velocity(model, SPECIAL, prompts(TEXTS), shape[1:])
    for t in (0.0, 0.4, 0.9):
        torch.testing.assert_close(velocity(x, torch.tensor(t)), whole_sequence(model, TEXTS, x, t), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_clean_pictures_before_a_picture_are_read_as_in_training(model):
    torch.manual_seed(2)
    before = [[[1, 2], Media(torch.randn(16, 1, 8, 8)), [3]],
              [Media(torch.randn(16, 1, 4, 8)), Media(torch.randn(16, 1, 8, 8)), [4, 5, 6, 7]], [[8]]]
    x = start_noise(5, range(len(before)), IMAGE)
    velocity = Velocity(model, SPECIAL, [interleaved(SPECIAL, segments)[:-1] for segments in before], IMAGE[1:])
    for t in (0.0, 0.7):
        ours = velocity(x, torch.tensor(t))
        for row, segments in enumerate(before):
            document = interleaved(SPECIAL, [*segments, Media(x[row], t, x[row], target=True)])
            packed = pack([[document]], length(document), SPECIAL)
            embeds, time = model.embed(packed)
            hidden = model.language(embeds, dense_mask(packed.doc, packed.span), packed.position)
            tokens = model.packed_velocity(hidden, time, packed)[0]
            wanted = flow.from_tokens(tokens[length(document) - 2 - 16:][:16][None], IMAGE[1:])
            torch.testing.assert_close(ours[row:row + 1], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@torch.inference_mode()
def test_guided_trajectory_equals_whole_sequences(model, guidance):
    x = noise = start_noise(1, range(len(TEXTS)), IMAGE)
    for t, following in pairwise(flow.sampling_times(6)):
        v_text = whole_sequence(model, TEXTS, x, t)
        v_null = whole_sequence(model, [[]] * len(TEXTS), x, t)
        x = x + (following - t) * flow.guide(v_null, v_text, guidance)
    ours = sample(model, SPECIAL, prompts(TEXTS), noise, Sampling(6, guidance))
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-5)


def test_a_picture_does_not_depend_on_its_batch(model):
    noise = start_noise(2, range(len(TEXTS)), IMAGE)
    together = sample(model, SPECIAL, prompts(TEXTS), noise, Sampling(4))
    for i, text in enumerate(TEXTS):
        alone = sample(model, SPECIAL, prompts([text]), noise[i:i + 1], Sampling(4))
        torch.testing.assert_close(alone, together[i:i + 1], atol=1e-4, rtol=1e-5)


def test_noise_depends_on_seed_and_index_alone():
    noise = start_noise(3, range(5), IMAGE)
    assert torch.equal(start_noise(3, range(2, 4), IMAGE), noise[2:4])
    assert not torch.equal(start_noise(4, range(5), IMAGE), noise)
    assert len({row.sum().item() for row in noise}) == 5
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_a_grid_of_one_point_is_an_error():
    with pytest.raises(ValueError, match="points=1"):
        Sampling(points=1)
