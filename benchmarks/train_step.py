"""The training loop against the same loop computed as the released trainer does, without and with its VAE.

Ours is `showo2.train.Trainer` on latents in shards: loader, packing, losses, clipping, AdamW, average, meters. Theirs
takes the same samples, one a row of 1024 tokens, computes everything at every position, and, with its VAE, encodes and
decodes every picture in every step. The model has 12.9 M parameters, the VAE is `tiny:vae` on 432x432: at these widths
its share of the FLOPs is near to what Wan's is of the 1.5B model's. "compiled" is ours with every block compiled, as the
paper's recipes run. One thread; each side in a process of its own.

    python -m benchmarks.train_step --json FILE
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKLWan

from benchmarks import released
from benchmarks._report import Aim, Report, Row
from benchmarks.model import build_model
from showo2.data.loader import Batches
from showo2.data.mixture import Entry
from showo2.sequence import IGNORE, Packed
from showo2.shards import Manifest, Shard, ShardSchema, TextRow, write_latents, write_text
from showo2.text import Tokenizer
from showo2.tiny import resolve
from showo2.train.meters import METRICS, read
from showo2.train.recipe import PARTS, Group, ModelParts, Parallel, Recipe
from showo2.train.trainer import Trainer

BUCKET = (1, 54, 54)
CAPTION = " and ".join(["a red circle left of a blue square"] * 8)
ROWS = 64
SIDES = ("ours", "compiled", "released", "released with VAE")
# Steps that warm up, and are not counted: a compiler takes changing lengths for changing at the second look.
WARM = 4


def recipe(steps: int, compiled: bool = False) -> Recipe:
    """3 generation samples and 1 caption a step, in one packed row."""
    return Recipe(
        name="benchmark", summary="", start="checkpoint", model=ModelParts("", "", "", size=432), context=3328,
        alpha=0.2, parallel=Parallel(compile=compiled),
        mixture=(Entry("generate", "generate", "pair", 3), Entry("caption", "caption", "pair", 1)),
        groups=(Group(PARTS, 1e-4),), steps=steps, checkpoint_every=10**6, log_every=1)


def prepare(folder: Path) -> None:
    """A checkpoint to start from, and a shard of latents with captions."""
    build_model("ours").save_pretrained(folder / "model")
    Tokenizer.from_pretrained("tiny:llm").save_pretrained(folder / "model")
    schema = ShardSchema("web", "pair", BUCKET, "vae", (0.0,) * 16, (1.0,) * 16, "center")
    uids = [f"{i:032x}" for i in range(ROWS)]
    latents = np.random.default_rng(0).standard_normal((ROWS, 16, *BUCKET)).astype(np.float16)
    data = folder / "data" / "latents"
    data.mkdir(parents=True)
    with open(data / "0.arrow", "wb") as file:
        write_latents(file, schema, uids, latents, np.full((ROWS, 2), 512, np.int32), np.zeros((ROWS, 4), np.int32))
    with open(data / "0.text.arrow", "wb") as file:
        write_text(file, schema, [TextRow(uid, CAPTION) for uid in uids])
    size = (data / "0.arrow").stat().st_size
    shard = Shard("0.arrow", "0.text.arrow", None, "web", "pair", BUCKET, ROWS, size, "0", "0")
    (data / "manifest.json").write_bytes(Manifest("benchmark", (shard,)).to_json())


def ours(folder: Path, what: Recipe) -> list[tuple[float, float]]:
    """Our loop; wall and CPU time at the end of each step."""
    trainer = trainer_in(folder, what)
    real: Callable = trainer._report
    ends: list[tuple[float, float]] = []

    def report(*arguments: object) -> None:
        real(*arguments)
        ends.append((time.perf_counter(), time.process_time()))

    trainer._report = report  # type: ignore[method-assign]
    trainer.run()
    return ends


def trainer_in(folder: Path, what: Recipe) -> Trainer:
    """A trainer of `what` on the prepared data."""
    return Trainer(what, (str(folder / "data"),), folder / "run", str(folder / "model"))


def theirs(folder: Path, steps: int, with_vae: bool) -> Iterator[tuple[float, float]]:
    """The released way on the same samples, the same times. Reading the samples is not counted."""
    # One document a micro-batch and row, dealt by our loader.
    trainer = trainer_in(folder, replace(recipe(steps), accumulate=4, context=1024))
    batches = Batches(trainer._stream(), trainer.manifests, trainer.tokenizer, 0, 1, 0, None)
    read_ahead = [batches[step].micro for step in range(steps)]
    model = released.without_savings(trainer.model.train())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0)
    vae = AutoencoderKLWan.from_pretrained(resolve("tiny:vae")).eval() if with_vae else None
    pixels = torch.rand(4, 3, 1, 432, 432) * 2 - 1
    for micro in read_ahead:
        if vae is not None:
            with torch.no_grad():
                vae.decode(vae.encode(pixels).latent_dist.mode())
        ntp, flow = released.forward(model, released_batch(micro))
        (0.2 * ntp + flow).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield time.perf_counter(), time.process_time()


def released_batch(micro: list[Packed], bucket: tuple[int, int, int] = BUCKET,
                   context: int = 1024) -> released.ReleasedBatch:
    """Packed batches of one document each, as the released trainer has them."""
    visuals = [packed.visuals[0] for packed in micro]
    starts = [int(v.start[0]) for v in visuals]
    size = bucket[1] * bucket[2] // 4 + 1
    labels = torch.full((len(micro), context), IGNORE)
    learned = torch.zeros(len(micro), context, dtype=torch.int64)
    for row, (packed, v, start) in enumerate(zip(micro, visuals, starts, strict=True)):
        labels[row, 1:] = packed.labels[0, :-1]
        learned[row, start + 1:start + size] = int(v.target[0])
    x1, x0 = (torch.cat([getattr(v, name)[:, :, 0] for v in visuals]) for name in ("latents", "noise"))
    t = torch.cat([v.t for v in visuals])
    x_t = t[:, None, None, None] * x1 + (1 - t[:, None, None, None]) * x0
    return released.ReleasedBatch(torch.cat([packed.ids for packed in micro]), labels, learned,
                                  [(start, size) for start in starts], x_t, x1 - x0, t)


def measure(side: str, steps: int) -> dict[str, float]:
    """Median wall and CPU seconds of a step, and ours' share of time spent waiting for data."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        own = side in ("ours", "compiled")
        loop = ours(folder, recipe(steps, side == "compiled")) if own else theirs(folder, steps, side.endswith("VAE"))
        ends = list(loop)[WARM - 1:]
        wall, cpu = (median(b[i] - a[i] for a, b in pairwise(ends)) for i in (0, 1))
        found = {"wall s": wall, "CPU s": cpu}
        if own:
            lines = [line for line in read(folder / "run" / METRICS) if line["step"] > WARM]
            found["data wait, share"] = sum(x["data_wait_s"] for x in lines) / sum(x["step_s"] for x in lines)
        return found


@dataclass(frozen=True)
class Options:
    """json: where to write the report; steps: of each side; side: (inner use) measure one side and print it."""

    json: str = "build/benchmarks/train_step.json"
    steps: int = 14
    side: str = ""


def main(options: Options) -> None:
    """Measure the three sides one after another."""
    if options.side:
        print(json.dumps(measure(options.side, options.steps)))
        return
    found = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.train_step", "--steps", str(options.steps), "--side", side]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[side] = json.loads(told.splitlines()[-1])
    rows = [Row(f"{side}, {name} of a step of 4 samples", value, "") for side, told in found.items()
            for name, value in told.items()]
    rows += [Row(f"{side}, samples a CPU second", 4 / told["CPU s"], "1/s") for side, told in found.items()]
    rows += [Row(f"CPU time, {side} / ours", found[side]["CPU s"] / found["ours"]["CPU s"], "") for side in SIDES[1:]]
    ratio = {side: found[side]["CPU s"] / found["compiled"]["CPU s"] for side in SIDES}
    aims = [Aim("CPU time, released / compiled", ratio["released"], ">=", 2),
            Aim("CPU time, released with VAE / compiled", ratio["released with VAE"], ">=", 5),
            Aim("data wait of ours, share of a step", found["ours"]["data wait, share"], "<", 0.01)]
    Report("train_step", rows, aims).write(options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
