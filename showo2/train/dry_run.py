"""A step of a large run without the machines: one rank's memory, counted while a real step runs on no real numbers.

The model, FSDP2, autograd and AdamW run as they are, in a process group that only pretends and with tensors that have
shapes and no values; integers (ids, masks, places) are real, because the model's shapes follow from them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from showo2.data.mixture import Entry
from showo2.data.packing import fill_rows
from showo2.model import Showo2, Showo2Config
from showo2.sequence import Document, Media, Text, length, pack
from showo2.text import SpecialTokens
from showo2.train.losses import Unified
from showo2.train.optimizer import Average, build_optimizer, clip, freeze, local, set_rate, squared_norm
from showo2.train.parallel import Workers, blocks, parallelize
from showo2.train.recipe import Recipe
from showo2.vae import CHANNELS

# Text of a caption, or of a conversation without its picture, in tokens.
TEXT_TOKENS = 128
# Ids that stand for the special tokens; their values do not matter here.
_SPECIAL = SpecialTokens(*range(9))


@dataclass(frozen=True)
class Footprint:
    """Bytes that one GPU holds. `peak` is the most at any moment of a step: what stays, and what comes and goes.

    parameters: fp32 masters. average: of the weights. activations: the most that forward and backward held beside
    what stays: saved activations, gathered weights, gradients, and what is being computed. rows, context: of a
    micro-batch.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    peak: int
    rows: int
    context: int


class _RealIntegers(TorchDispatchMode):
    """Operations on real tensors alone stay real, and so do new integers; all else has no values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # It comes back with what a rank holds of each.
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(type(x) not in (Tensor, nn.Parameter) for x in tensors):
            return func(*args, **kwargs)
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        if not tensors and dtype.is_floating_point and func.overloadpacket is not torch.ops.aten.arange:
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


class _Live(TorchDispatchMode):
    """Bytes of the valueless tensors that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.counting = True
        self._sizes: dict[weakref.ref[torch.UntypedStorage], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, FakeTensor) and self.counting:
                storage = weakref.ref(x.untyped_storage(), self._forget)
                if storage not in self._sizes:
                    self._sizes[storage] = x.untyped_storage().nbytes()
                    self.bytes += self._sizes[storage]
        if self.bytes > self.peak:
            self.settle()
            self.peak = max(self.peak, self.bytes)
        return out

    def settle(self) -> None:
        """Measure anew: FSDP frees gathered weights by resizing their storage, which is no operation."""
        for reference in self._sizes:
            storage = reference()
            self._sizes[reference] = storage.nbytes() if storage is not None else 0
        self.bytes = sum(self._sizes.values())

    def _forget(self, storage: weakref.ref[torch.UntypedStorage]) -> None:
        self.bytes -= self._sizes.pop(storage)


class _NotCounting(AbstractContextManager[None]):
    """DTensor learns the shape of a result from a run on whole tensors, which no rank ever holds."""

    def __init__(self, live: _Live):
        self._live = live

    def __enter__(self) -> None:
        self._live.counting = False

    def __exit__(self, *_: object) -> None:
        self._live.counting = True


@contextmanager
def _counted() -> Iterator[_Live]:
    """Everything in the body runs on valueless tensors, and is counted."""
    before, live = ShardingPropagator._fake_mode_lock, _Live()
    ShardingPropagator._fake_mode_lock = _NotCounting(live)  # type: ignore[assignment]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), live, _RealIntegers():
            yield live
    finally:
        ShardingPropagator._fake_mode_lock = before


@contextmanager
def pretended_group(world: int) -> Iterator[Workers]:
    """Rank 0 of `world` workers that do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield Workers(0, world)
    finally:
        dist.destroy_process_group()


def dry_run(recipe: Recipe, config: Showo2Config, gpus: int) -> Footprint:
    """Make the first of `gpus` ranks take one step of `recipe` with a model of `config`, on a CPU and no memory.

    Compilation is left out: it saves some activations and changes nothing else. Raises ValueError for distillation.
    """
    if recipe.distills:
        raise ValueError(f"recipe {recipe.name} distills, which needs little: run a later stage dry")
    recipe = replace(recipe, parallel=replace(recipe.parallel, compile=False))
    micro = pack(rows(recipe, gpus), recipe.context, _SPECIAL)
    with pretended_group(gpus) as workers, _counted() as live:
        model = Showo2(config)
        objective = Unified(model, recipe.alpha)
        trained = freeze(model, recipe)
        parallelize(model, blocks(model), workers, recipe.parallel)
        trained = {name: p for name, p in model.named_parameters() if name in trained}
        optimizer, average = build_optimizer(trained, recipe), Average(trained, recipe.ema)
        live.settle()
        stays = live.peak = live.bytes
        objective.sums(micro).sum().backward()
        gradients = sum(_bytes(p.grad) for p in trained.values() if p.grad is not None)
        activations = live.peak - stays
        squared_norm(trained.values())
        clip(trained.values(), 2.0, 1.0)
        set_rate(optimizer, 1.0)
        optimizer.step()
        return Footprint(
            parameters=sum(map(_bytes, model.parameters())), gradients=gradients,
            optimizer=sum(_bytes(x) for state in optimizer.state.values() for x in state.values()),
            average=sum(map(_bytes, average.weights.values())), activations=activations, peak=live.peak,
            rows=len(micro.ids), context=recipe.context)


def _bytes(tensor: Tensor) -> int:
    tensor = local(tensor.detach())
    return tensor.numel() * tensor.element_size()


def rows(recipe: Recipe, gpus: int) -> list[list[Document]]:
    """The documents of the most loaded rank's micro-batch, packed."""
    documents: list[Document] = []
    for entry in recipe.mixture:
        documents += [_document(recipe, entry)] * -(-entry.samples // (gpus * recipe.accumulate))
    return [[documents[i] for i in row] for row in fill_rows([length(d) for d in documents], recipe.context)]


def _document(recipe: Recipe, entry: Entry) -> Document:
    """A sample of `entry` with `TEXT_TOKENS` of text, and as many pictures as fit where it is interleaved."""
    latents, text = torch.randn(CHANNELS, *(entry.bucket or recipe.bucket)), list(range(TEXT_TOKENS))
    drawn = Media(latents, 0.5, torch.randn_like(latents), target=True)
    if entry.task == "tell":
        segments = (recipe.context - 2) // (drawn.tokens + TEXT_TOKENS)
        return [part for _ in range(segments) for part in (Text(text, True), drawn)]
    if entry.task in ("generate", "animate"):
        return [Text(text), drawn, Text([0, 0])]
    return [Text([0, 0]), Media(latents), Text(text, True)]
