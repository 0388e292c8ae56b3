"""Parallelism, applied to a plain model from outside: processes, sharding (FSDP2), and sums over ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from showo2.model import Showo2
from showo2.train.recipe import Parallel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """The processes of a run.

    main: the group of small sums and messages, which lie in CPU memory (None: the default group). side: a group of
    its own for collectives of the checkpoint thread.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    main: dist.ProcessGroup | None = None
    side: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values, group=self.main)
        return values

    def gather(self, item: Any, side: bool = False) -> list[Any]:
        """`item` of every rank, in their order (small plain objects)."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item, group=self.side if side else self.main)
        return items

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier(group=self.main)


def join(device: torch.device | str = "cpu") -> Workers:
    """The workers that torchrun or Ray Train describe in the environment; one process where neither does."""
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Workers(device=device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    main = dist.new_group(backend="gloo") if device.type == "cuda" else None
    return Workers(dist.get_rank(), world, device, main, dist.new_group(backend="gloo"))


def blocks(model: Showo2) -> list[nn.Module]:
    """The transformer blocks of the model, from input to output."""
    return [*model.semantic.layers, *model.language_model.model.layers, *model.flow_head.blocks]


def parallelize(root: nn.Module, units: Sequence[nn.Module], workers: Workers, plan: Parallel,
                smallest: int = 2**22) -> None:
    """Apply a recipe's plan to a plain model: recomputation and compilation of each of `units`, then sharding.

    Names of parameters stay what they were. Raises ValueError where the workers do not divide into replicas.
    """
    if plan.compile:
        # Blocks of three kinds, each for fixed and for changing shapes: past the limit they would run uncompiled.
        torch._dynamo.config.recompile_limit = 64
    for unit in units:
        if plan.recompute != "nothing":
            _recompute(unit, whole=plan.recompute == "blocks")
        if plan.compile:
            unit.forward = torch.compile(unit.forward)
    if workers.world > 1 or plan.precision == "bf16":
        _shard(root, units, mesh(workers, plan), plan, smallest)


# Results that are cheaper to keep than to compute again: matrix products and attention.
_KEPT = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default,
         torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
         torch.ops.aten._scaled_dot_product_flash_attention.default,
         torch.ops.aten._scaled_dot_product_efficient_attention.default,
         torch.ops.higher_order.flex_attention}


def _recompute(unit: nn.Module, whole: bool) -> None:
    """Run `unit` without keeping its activations: all of them (`whole`), or all but those that `_KEPT` lists."""
    # No layer draws random numbers, so no generator's state has to be kept.
    run = partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False)
    unit.forward = run if whole else partial(run, context_fn=partial(create_selective_checkpoint_contexts, _keep))


def _keep(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def replicas(workers: Workers, plan: Parallel) -> int:
    """Copies of the weights among the workers, each sharded over `plan.shard` of them."""
    size = plan.shard or workers.world
    if workers.world == 1 or workers.world % size == 0:
        return max(1, workers.world // size)
    raise ValueError(f"{workers.world} workers do not divide into replicas of parallel.shard={size}")


def mesh(workers: Workers, plan: Parallel) -> DeviceMesh:
    """One dimension where all workers share one copy of the weights, else (replicas, workers of a replica)."""
    if workers.world == 1 and not dist.is_initialized():
        # Mixed precision is FSDP's: alone, it runs over a group of one.
        backend = "nccl" if workers.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    copies = replicas(workers, plan)
    if copies == 1:
        return init_device_mesh(workers.device.type, (workers.world,))
    return init_device_mesh(workers.device.type, (copies, workers.world // copies),
                            mesh_dim_names=("replicate", "shard"))


def _shard(root: nn.Module, units: Sequence[nn.Module], over: DeviceMesh, plan: Parallel, smallest: int) -> None:
    """Shard `root` (FSDP2), each of `units` in a group of its own; gradients are sums over ranks, in fp32.

    A unit under `smallest` parameters stays in the root's group: its collectives would cost more than the memory
    that it frees is worth (on two gloo ranks a unit of 0.2 M parameters costs three calls of about a millisecond).
    """
    half = plan.precision == "bf16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for unit in units:
        if sum(p.numel() for p in unit.parameters()) >= smallest:
            fully_shard(unit, mesh=over, mp_policy=policy)
    fully_shard(root, mesh=over, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by global counts: the mean over ranks would divide twice.
            module.set_gradient_divide_factor(1.0)
            # Gloo knows no premultiplied sum, which is what a factor becomes otherwise.
            module.set_force_sum_reduction_for_comms(True)


def set_gradient_sync(root: nn.Module, sync: bool) -> None:
    """Whether the next backward pass adds gradients up over ranks: only the last micro-batch of a step needs to."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(sync)
