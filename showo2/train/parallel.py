"""Parallelism, applied to a plain model from outside: processes, sharding (FSDP2), and sums over ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from showo2.model import Showo2

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """The processes of a run. `side` is a group of its own for collectives of the checkpoint thread."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    side: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, item: Any, side: bool = False) -> list[Any]:
        """`item` of every rank, in their order (small plain objects)."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item, group=self.side if side else None)
        return items

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier()


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
    return Workers(dist.get_rank(), world, device, dist.new_group(backend="gloo"))


def has_bf16() -> bool:
    """Whether matrix products in bf16 run on hardware of their own; elsewhere they are slower than in fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def blocks(model: Showo2) -> list[nn.Module]:
    """The transformer blocks of the model, from input to output."""
    return [*model.semantic.layers, *model.language_model.model.layers, *model.flow_head.blocks]


def shard(root: nn.Module, units: Sequence[nn.Module], workers: Workers, smallest: int = 2**22) -> None:
    """Shard `root` over all ranks, each of `units` in a group of its own; gradients are sums over ranks.

    A unit under `smallest` parameters stays in the root's group: its collectives would cost more than the memory
    that it frees is worth (on two gloo ranks a unit of 0.2 M parameters costs three calls of about a millisecond).
    """
    if workers.world == 1:
        return
    mesh = init_device_mesh(workers.device.type, (workers.world,))
    for unit in units:
        if sum(p.numel() for p in unit.parameters()) >= smallest:
            fully_shard(unit, mesh=mesh)
    fully_shard(root, mesh=mesh)
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
