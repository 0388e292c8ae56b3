"""Any mixture trains: one modality alone, clips, stories, and modalities that only one rank has."""

import json
from dataclasses import replace

import pytest
import torch

from showo2.data.loader import Batch
from showo2.sequence import Document, Media, Text, captioning, interleaved, pack, text_to_image
from showo2.text import Tokenizer
from showo2.train.parallel import Workers
from showo2.train.recipe import PARTS, Group
from showo2.train.trainer import Trainer
from tests.train.small import ranks, small_parts, small_recipe, story

CONTEXT = 96
WORDS = [20, 21, 22, 23]
SHAPES = [(16, 1, 8, 8), (16, 5, 8, 8)]


def media(seed: int, frames: int = 1, target: bool = True) -> Media:
    g = torch.Generator().manual_seed(seed)
    x1, x0 = (torch.randn(16, frames, 8, 8, generator=g) for _ in range(2))
    return Media(x1, 0.3, x0, target=True) if target else Media(x1)


def documents(special) -> dict[str, Document]:
    return {
        "text": [Text([special.bos]), Text(WORDS, True)],
        "picture": text_to_image(special, WORDS, media(0)),
        "caption": captioning(special, media(1, target=False), WORDS),
        "clip": text_to_image(special, WORDS[:2], media(2, frames=5)),
        "story": interleaved(special, [WORDS, media(3, target=False), WORDS, media(4)]),
    }


def step(workers, recipe, data, out, dealt: list[list[str]], init=None):
    """One step of every rank on the documents dealt to it, each rank's in a micro-batch for each of `dealt`."""
    trainer = Trainer(recipe, data, out / f"{workers.rank}of{workers.world}", init, workers)
    made = documents(trainer.tokenizer.special)
    mine = dealt if workers.world == 1 else [dealt[workers.rank]]
    special = trainer.tokenizer.special
    micro = [pack([[made[name]] for name in names] or [[]], CONTEXT, special, SHAPES) for names in mine]
    found = trainer.step(Batch(micro, ["x"], [], 1, {}))
    if workers.first:
        (out / f"{workers.world}.json").write_text(json.dumps([found.loss, found.norm, found.terms]))


@pytest.mark.parametrize("dealt", [
    [["text"], []],
    [["picture"], ["text"]],
    [["clip"], ["caption"]],
    [["story", "text"], ["clip", "picture"]],
], ids=str)  # fmt: skip
def test_two_ranks_with_different_modalities_do_what_one_does(dealt, tmp_path, data, parts):
    recipe = small_recipe(parts, accumulate=2)
    assert ranks(2, step, recipe, data, tmp_path, dealt) == [0, 0]
    step(Workers(), recipe, data, tmp_path, dealt)
    two, one = (json.loads((tmp_path / f"{world}.json").read_text()) for world in (2, 1))
    assert two == [pytest.approx(value, rel=1e-5) for value in one]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, data, parts) -> str:
    """A finished run, whose model a larger one is taught by."""
    out = tmp_path_factory.mktemp("small")
    Trainer(small_recipe(parts, steps=1), data, out).run()
    return str(out)


def taught(tmp_path, parts, **changes):
    wide = replace(parts, llm=small_parts(tmp_path / "wide", width=48).llm)
    return small_recipe(wide, start="transfer", taught=5.0, accumulate=2, **changes)


@pytest.mark.parametrize("dealt", [[["picture", "caption"], ["story"]], [["text"], ["picture"]]], ids=str)
def test_two_ranks_are_taught_what_one_is(dealt, small_run, tmp_path, data, parts):
    recipe = taught(tmp_path, parts)
    assert ranks(2, step, recipe, data, tmp_path, dealt, small_run) == [0, 0]
    step(Workers(), recipe, data, tmp_path, dealt, small_run)
    two, one = (json.loads((tmp_path / f"{world}.json").read_text()) for world in (2, 1))
    assert two == [pytest.approx(value, rel=1e-5) for value in one] and one[2]["taught"] > 0


def test_what_is_taught_is_learnt(small_run, tmp_path, data, parts):
    Trainer(taught(tmp_path, parts, steps=25, groups=(Group(PARTS, 5e-3),)), data, tmp_path / "run", small_run).run()
    errors = [line["taught"] for line in story(tmp_path / "run")]
    assert errors[-1] < 0.5 * errors[0]


def test_a_teacher_of_other_tokens_is_refused(small_run, tmp_path, data, parts):
    other = Tokenizer.from_pretrained(parts.llm)
    other.inner.add_tokens(["<another>"])
    recipe = taught(tmp_path, parts)
    other.save_pretrained(recipe.model.llm)
    with pytest.raises(ValueError, match="their tokenizers differ"):
        Trainer(recipe, data, tmp_path / "run", small_run)
    with pytest.raises(ValueError, match="only what starts from a transfer"):
        small_recipe(parts, taught=1.0)


@pytest.mark.parametrize("name", ["text", "picture", "caption", "clip", "story"])
def test_one_kind_alone_trains(name, tmp_path, data, parts):
    step(Workers(), small_recipe(parts), data, tmp_path, [[name]])
    loss, norm, terms = json.loads((tmp_path / "1.json").read_text())
    assert 0 < loss < 100 and 0 < norm < 1e4
    assert (terms["flow"] > 0) == (name in ("picture", "clip", "story"))
    assert (terms["ntp"] > 0) == (name in ("text", "caption", "story"))
    assert ("flow_t1/4-1/2" in terms) == (terms["flow"] > 0) and "flow_t3/4-1" not in terms
