"""Counts made before the forward pass are those of the model, and nothing divides by zero."""

import copy

import pytest
import torch

from showo2.data.documents import Pairs
from showo2.sequence import Media, pack, text_to_image
from showo2.train.losses import Distillation, Taught, Unified
from showo2.train.parallel import CPU
from showo2.train.start import build_model
from tests.generate.checkpoint import byte_tokenizer
from tests.train.small import small_recipe


@pytest.fixture(scope="module")
def model(parts):
    return build_model(small_recipe(parts), None)[0]


def pairs(n: int) -> Pairs:
    torch.manual_seed(0)
    return Pairs(torch.randn(n, 16, 8, 8), torch.randn(n, 16, 8, 8), torch.ones(n), torch.rand(n, 3, 64, 64) * 2 - 1)


def test_distillation_sums_over_patches(model, parts):
    objective = Distillation(model, parts.siglip, CPU)
    one, two = pairs(1), pairs(2)
    assert objective.counts(two) == [32, 32]
    total, cosine = objective.sums(two)
    parts_of_it = [objective.sums(Pairs(*(x[i:i + 1] for x in vars(two).values()))) for i in range(2)]
    torch.testing.assert_close(total, parts_of_it[0][0] + parts_of_it[1][0])
    torch.testing.assert_close(cosine, parts_of_it[0][1] + parts_of_it[1][1])
    assert -16 <= float(objective.sums(one)[1]) <= 16


def test_rank_without_pictures_still_runs_every_layer(model, parts):
    objective = Distillation(model, parts.siglip, CPU)
    model.zero_grad()
    sums = objective.sums(pairs(0))
    assert sums.tolist() == [0.0, 0.0] and objective.counts(pairs(0)) == [0, 0]
    sums.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.semantic.parameters())


def test_who_is_taught_by_itself_has_nothing_to_learn(model):
    g = torch.Generator().manual_seed(0)
    drawn = Media(torch.randn(16, 1, 8, 8, generator=g), 0.3, torch.randn(16, 1, 8, 8, generator=g), target=True)
    special = byte_tokenizer().special
    packed = pack([[text_to_image(special, [20, 21], drawn)], []], 96, special, [(16, 1, 8, 8)])
    objective = Taught(model, 1.0, 5.0, copy.deepcopy(model))
    same = objective.sums(packed)
    assert len(same) == len(objective.counts(packed)) == len(objective.terms) == len(objective.weights)
    assert same[-1] == 0 and objective.counts(packed)[-1] == int((packed.flow >= 0).sum()) > 0
    torch.testing.assert_close(same[:-1], Unified(model, 1.0).sums(packed))
    with torch.no_grad():
        objective.teacher.language_model.model.norm.weight.mul_(2)
    # Twice of everything: the distance is half of the teacher's size.
    assert float(objective.sums(packed)[-1]) == pytest.approx(objective.counts(packed)[-1] / 4, rel=1e-4)
