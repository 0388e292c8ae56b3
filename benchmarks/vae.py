"""One picture through the full-size Wan VAE: our 2D path against AutoencoderKLWan.

FLOPs are of a 432x432 picture, counted on the meta device; CPU time is of a smaller one, on one thread, the
median of alternating rounds.

    python -m benchmarks.vae --json FILE
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import tyro
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._report import Aim, Report, Row
from benchmarks.model import ATTENTION_FLOPS
from showo2.vae import WanVAE


@dataclass(frozen=True)
class Options:
    """json: where the report goes. side: pixels of the timed picture. rounds: of both sides."""

    json: str = "build/benchmarks/vae.json"
    side: int = 128
    rounds: int = 3


def flops(call: Callable[[Tensor], object], given: Tensor) -> int:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter, torch.no_grad():
        call(given)
    return counter.get_total_flops()


def seconds(call: Callable[[Tensor], object], given: Tensor) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    with torch.no_grad():
        call(given)
    return time.process_time() - start


def run(options: Options) -> Report:
    """Measure both sides in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    state = AutoencoderKLWan().state_dict()
    meta, vae = WanVAE({}, state, device="meta"), WanVAE({}, state)
    rows, aims = [], []
    picture = torch.rand(1, 3, 1, options.side, options.side) * 2 - 1
    latents = vae.encode(picture)
    mean, std = vae.statistics()
    both = {
        "encode": (vae.encode, lambda x: vae.network._encode(x), picture),
        "decode": (vae.decode, lambda z: vae.network._decode(z * std + mean).sample, latents),
    }
    counted = {
        "encode": (meta.encode, meta.network._encode, torch.empty(1, 3, 1, 432, 432, device="meta")),
        "decode": (meta.decode, meta.network._decode, torch.empty(1, 16, 1, 54, 54, device="meta")),
    }
    for name, (ours, theirs, given) in both.items():
        our_flops, their_flops = (flops(call, counted[name][2]) for call in counted[name][:2])
        times = [(seconds(ours, given), seconds(theirs, given)) for _ in range(options.rounds + 1)][1:]
        our_time, their_time = (median(side) for side in zip(*times, strict=True))
        with torch.no_grad():
            want = theirs(given)
            want = (want.chunk(2, dim=1)[0] - mean) / std if name == "encode" else want
            difference = (ours(given) - want).abs().max().item()
        rows += [Row(f"{name}: FLOPs, 2D", our_flops / 1e9, "GFLOP"),
                 Row(f"{name}: FLOPs, 3D", their_flops / 1e9, "GFLOP"),
                 Row(f"{name}: CPU time, 2D", our_time, "s"), Row(f"{name}: CPU time, 3D", their_time, "s"),
                 Row(f"{name}: largest difference", difference, "")]
        if name == "encode":
            aims.append(Aim("encode: share of the FLOPs", our_flops / their_flops, "<=", 0.36))
        aims += [Aim(f"{name}: share of the CPU time", our_time / their_time, "<", 1.0),
                 Aim(f"{name}: largest difference", difference, "<=", 1e-5)]
    return Report("vae", rows, aims)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
