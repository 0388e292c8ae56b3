"""Documents are what the task says, fit the context, and every draw is a function of the sample alone."""

import dataclasses
import json

import numpy as np
import torch

from showo2.data.documents import build, draw, teacher_pixels
from showo2.flow import interpolate
from showo2.sequence import IGNORE, Media, Text, length, pack
from showo2.shards import Row, TextRow
from tests.generate.checkpoint import byte_tokenizer
from tests.train.small import _jpeg

TOKENIZER = byte_tokenizer()
SHAPE = (16, 1, 8, 8)


def row(text="a red circle", turns=()):
    messages = json.dumps([{"from": who, "value": value} for who, value in turns]) if turns else ""
    return Row("0" * 32, "web", "pair", torch.zeros(SHAPE, dtype=torch.float16),
               TextRow("0" * 32, "" if turns else text, messages), 512, 512, (0, 0, 512, 512))


def made(task, of, context=128, dropout=0.0, number=0):
    return build(task, of, draw(0, [("e", number)], [SHAPE], [1])[0], TOKENIZER, context, "plain", dropout)


def said(document):
    return TOKENIZER.decode([i for part in document if isinstance(part, Text) for i in part.ids])


def test_draws_depend_on_seed_entry_and_number_only():
    def drawn(seed, *samples):
        return draw(seed, samples, [SHAPE] * len(samples), [1] * len(samples))

    [one], [_, again] = drawn(0, ("e", 5)), drawn(0, ("x", 0), ("e", 5))
    assert torch.equal(one.noise, again.noise) and one.times == again.times and one.drop == again.drop
    for other in (*drawn(1, ("e", 5)), *drawn(0, ("f", 5), ("e", 6))):
        assert not torch.equal(one.noise, other.noise) and one.times != other.times


def test_draws_have_the_right_distributions():
    draws = draw(0, [("e", n) for n in range(4000)], [(16,)] * 4000, [1] * 4000)
    noise = torch.stack([d.noise for d in draws])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(np.mean([d.drop < 0.1 for d in draws]) - 0.1) < 0.02
    # Half of the logit-normal draws lie below 1/2, which the shift by s = e^0.580 moves to 1/(1 + s).
    assert abs(np.median([d.times[0] for d in draws]) - 1 / (1 + np.exp(0.58))) < 0.02


def test_generation_has_a_target_and_sometimes_no_caption():
    document = made("generate", row())
    media = document[1]
    assert isinstance(media, Media) and media.target and media.noise is not None and 0 < media.t < 1
    assert said(document) == "a red circle"
    dropped = [said(made("generate", row(), dropout=0.1, number=n)) == "" for n in range(500)]
    assert 0.05 < np.mean(dropped) < 0.15


def test_an_animated_clip_is_given_its_first_picture():
    latents = torch.arange(16 * 5 * 8 * 8).reshape(16, 5, 8, 8).half() / 1000
    clip = dataclasses.replace(row("a dog runs"), latents=latents)
    drawn = draw(0, [("e", 0)], [latents.shape], [1])[0]
    generated, animated = (build(task, clip, drawn, TOKENIZER, 128, "plain", 0.0)[1] for task in ("generate", "animate"))
    assert torch.equal(animated.noise[:, :1], latents[:, :1].float()) and torch.equal(animated.noise[:, 1:], generated.noise[:, 1:])
    assert animated.target and animated.t == generated.t < 1 and not torch.equal(generated.noise[:, :1], animated.noise[:, :1])
    x_t = interpolate(animated.latents[None], animated.noise[None], torch.tensor([animated.t]))[0]
    assert torch.allclose(x_t[:, :1], latents[:, :1].float()) and not torch.allclose(x_t[:, 1:], latents[:, 1:].float())


def test_understanding_reads_a_clean_picture():
    for document in (made("caption", row()), made("converse", row(turns=[("human", "<image>\nq"), ("gpt", "red")]))):
        media = next(part for part in document if isinstance(part, Media))
        assert media.t == 1.0 and media.noise is None and not media.target


def test_only_answers_are_supervised():
    document = made("converse", row(turns=[("human", "<image>\nwhat?"), ("gpt", "red")]))
    packed = pack([[document]], 64, TOKENIZER.special)
    targets = packed.labels[packed.labels != IGNORE].tolist()
    assert targets == [*TOKENIZER.encode("red"), TOKENIZER.special.eos]


def test_long_captions_are_cut_to_the_context():
    for task in ("generate", "caption"):
        assert length(made(task, row("long " * 100), context=64)) == 64


def test_long_conversations_lose_their_last_turns():
    turns = [("human", "<image>\nwhat colour?"), ("gpt", "red"), ("human", "and " * 20), ("gpt", "blue")]
    assert said(made("converse", row(turns=turns), context=64)) == "what colour? red"
    assert made("converse", row(turns=[("human", "long " * 50), ("gpt", "red")]), context=64) is None


def test_teachers_picture_is_what_siglip_reads():
    [pixels] = teacher_pixels([_jpeg("red")], 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels[0].mean() > 0.95 and pixels[1].mean() < -0.95


def story(pictures):
    segments = [part for i in range(pictures) for part in ({"text": f"part {i}"}, {"image": i})]
    latents = torch.zeros(16, pictures, 8, 8, dtype=torch.float16)
    return Row("0" * 32, "web", "interleaved", latents, TextRow("0" * 32, "", json.dumps(segments)), 0, 0, (0, 0, 0, 0))


def told(pictures, number, context=512):
    of = story(pictures)
    [draws] = draw(0, [("s", number)], [tuple(of.latents.shape)], [pictures])
    return build("tell", of, draws, TOKENIZER, context, "plain", 0.1)


def test_history_is_clean_or_all_noised_with_times_of_their_own():
    """Section 4.4: with probability 0.3 every picture is noised; else some first ones are clean, the last never."""
    clean = []
    for number in range(1000):
        media = [part for part in told(4, number) if isinstance(part, Media)]
        noised = [part for part in media if part.target]
        clean.append(4 - len(noised))
        assert media[:clean[-1]] == [part for part in media if not part.target]
        assert all(part.t == 1.0 and part.noise is None for part in media[:clean[-1]])
        assert len({part.t for part in noised}) == len(noised) and all(0 < part.t < 1 for part in noised)
    shares = np.bincount(clean, minlength=5) / 1000
    assert abs(shares[0] - 0.3) < 0.05 and shares[4] == 0
    assert np.abs(shares[1:4] - 0.7 / 3).max() < 0.05


def test_single_picture_of_a_document_is_always_learned():
    assert all(part.target for number in range(50) for part in told(1, number) if isinstance(part, Media))


def test_long_documents_lose_their_last_segments():
    whole, cut = told(4, 0), told(4, 0, context=64)
    assert said(whole) == "part 0part 1part 2part 3" and length(cut) <= 64
    assert said(cut) == "part 0part 1part 2" and sum(isinstance(part, Media) for part in cut) == 2


def test_a_first_text_that_is_too_long_is_cut():
    of = story(1)
    messages = json.dumps([{"text": "long " * 100}, {"image": 0}])
    of = dataclasses.replace(of, text=dataclasses.replace(of.text, messages=messages))
    [draws] = draw(0, [("s", 0)], [tuple(of.latents.shape)], [1])
    document = build("tell", of, draws, TOKENIZER, 64, "plain", 0.1)
    assert length(document) == 64 and said(document) == ("long " * 100)[:62]


def test_text_alone_is_read():
    assert said(made("read", row("just words"))) == "just words"
    assert length(made("read", row("long " * 100), context=64)) == 64
    talk = made("read", row(turns=[("human", "colour?"), ("gpt", "red")]))
    assert said(talk) == "colour? red" and not any(isinstance(part, Media) for part in talk)
