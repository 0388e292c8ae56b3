"""AdamW over named groups, learning-rate schedules, global gradient norm, and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from showo2.train.recipe import Recipe


def freeze(model: nn.Module, recipe: Recipe) -> dict[str, nn.Parameter]:
    """Leave only the recipe's groups trainable; returns those parameters by name.

    Raises ValueError where a group matches no parameter, or a parameter lies in two groups.
    """
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        groups = [i for i, group in enumerate(recipe.groups) if name.startswith(group.parts)]
        if len(groups) > 1:
            raise ValueError(f"recipe {recipe.name}: {name} is in learning-rate groups {groups}; name it in one")
        parameter.requires_grad_(bool(groups))
        if groups:
            trained[name] = parameter
    for group in recipe.groups:
        if not any(name.startswith(group.parts) for name in trained):
            raise ValueError(f"recipe {recipe.name}: no parameter of the model starts with {group.parts}")
    return trained


def build_optimizer(trained: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW whose state exists from the start, so that a checkpoint can be loaded into it in place."""
    groups = [{"params": [p for name, p in trained.items() if name.startswith(group.parts)], "peak": group.lr}
              for group in recipe.groups]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas, eps=recipe.eps,
                                  weight_decay=recipe.weight_decay, foreach=True)
    for parameter in trained.values():
        optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter),
                                      "exp_avg_sq": torch.zeros_like(parameter)}
    return optimizer


def rate(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step`, counted from 0: linear warm-up, then the schedule."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give each group its share of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or the tensor itself where it is not sharded; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def squared_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sum of squares of the gradients that this rank holds, float64 scalar: add it up over ranks for the norm."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)).double().square().sum()


def clip(parameters: Iterable[nn.Parameter], norm: float, largest: float) -> None:
    """Scale the gradients so that their global `norm` is at most `largest`."""
    if norm > largest:
        torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], largest / norm)


class Average:
    """Exponential moving average of the trained parameters, sharded as they are.

    It averages over a tenth of the steps so far until that is what `decay` says: a short run forgets its start too.
    """

    def __init__(self, trained: dict[str, nn.Parameter], decay: float):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in trained.items()}
        self._sources = [local(p.detach()) for p in trained.values()]
        self._locals = [local(w) for w in self.weights.values()]

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Move each average toward its parameter, `done` steps having been made before this one."""
        torch._foreach_lerp_(self._locals, self._sources, max(1 - self.decay, 10 / (done + 10)))
