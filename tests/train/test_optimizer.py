"""Groups, schedules, clipping and the average of weights."""

import pytest
import torch
from torch import nn

from showo2.train.optimizer import Average, build_optimizer, clip, freeze, rate, set_rate, squared_norm
from showo2.train.recipe import Group
from tests.train.small import small_recipe


class Parts(nn.Module):
    """A module with the names of a model's parts."""

    def __init__(self):
        super().__init__()
        self.fusion, self.flow_head, self.semantic = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2)


@pytest.fixture
def recipe(parts):
    return small_recipe(parts, groups=(Group(("fusion.",), 1e-2), Group(("flow_head.",), 1e-3)))


def test_only_the_groups_train(recipe):
    model = Parts()
    trained = freeze(model, recipe)
    assert set(trained) == {"fusion.weight", "fusion.bias", "flow_head.weight", "flow_head.bias"}
    assert not model.semantic.weight.requires_grad


def test_group_without_a_parameter_is_an_error(parts):
    with pytest.raises(ValueError, match="no parameter of the model starts with .*projector"):
        freeze(Parts(), small_recipe(parts, groups=(Group(("projector.",), 1.0),)))


def test_groups_keep_their_ratio_through_the_schedule(recipe):
    optimizer = build_optimizer(freeze(Parts(), recipe), recipe)
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 5e-4]


def test_state_made_beforehand_is_what_adamw_would_make(recipe):
    torch.manual_seed(0)
    mine = Parts()
    theirs = Parts()
    theirs.load_state_dict(mine.state_dict())
    plain = torch.optim.AdamW([{"params": theirs.fusion.parameters(), "lr": 1e-2},
                               {"params": theirs.flow_head.parameters(), "lr": 1e-3}], weight_decay=0.0)
    optimizer = build_optimizer(freeze(mine, recipe), recipe)
    set_rate(optimizer, 1.0)
    for _ in range(3):
        for model, opt in ((mine, optimizer), (theirs, plain)):
            opt.zero_grad()
            model.flow_head(model.fusion(torch.ones(2, 3))).square().sum().backward()
            opt.step()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_schedules(parts):
    constant = small_recipe(parts, schedule="constant", warmup=4, steps=10)
    assert [rate(step, constant) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = small_recipe(parts, schedule="cosine", warmup=0, steps=10)
    assert rate(0, cosine) == 1.0 and rate(5, cosine) == pytest.approx(0.5) and rate(10, cosine) == 0.0


def test_clipping_leaves_small_gradients_alone(recipe):
    model = Parts()
    trained = freeze(model, recipe)
    for p in trained.values():
        p.grad = torch.ones_like(p)
    norm = float(squared_norm(trained.values())) ** 0.5
    assert norm == pytest.approx(sum(p.numel() for p in trained.values()) ** 0.5)
    clip(trained.values(), norm, 100.0)
    assert torch.equal(model.fusion.bias.grad, torch.ones(3))
    clip(trained.values(), norm, 1.0)
    assert float(squared_norm(trained.values())) == pytest.approx(1.0)


def test_average_follows_the_weights(recipe):
    model = Parts()
    trained = freeze(model, recipe)
    average = Average(trained, 0.75)
    before = model.fusion.weight.detach().clone()
    with torch.no_grad():
        model.fusion.weight += 1.0
    average.update(10_000)
    torch.testing.assert_close(average.weights["fusion.weight"], before + 0.25)
    average.update(0)
    assert torch.equal(average.weights["fusion.weight"], model.fusion.weight), "the start is forgotten at once"
