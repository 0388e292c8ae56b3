"""What one GPU makes of the real sizes: training steps, the VAE, attention, drawing, answering, and exact resume.

Weights are random: time and memory do not depend on what they say. Every part runs in a process of its own, within a
time limit; a part that fails is told at the end and costs the others nothing. `--small` rehearses it all on a CPU.

    python -m benchmarks.gpu --json FILE [--parts train-1.5b-stage1a vae ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO

import torch
import tyro
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from benchmarks._gpu_steps import (
    STEPS,
    Found,
    Where,
    config_of,
    count_bytes,
    measure_released,
    measure_step,
    random_model,
    seconds,
    share,
    wan,
)
from benchmarks._report import Aim, Report, Row
from benchmarks.train_step import prepare
from benchmarks.train_step import recipe as small_recipe
from showo2.generate import Showo2Pipeline
from showo2.generate.decoder import greedy
from showo2.model.attention import additive, attend, block_mask, dense_mask
from showo2.model.weights import read
from showo2.sequence import Media, Text, length
from showo2.text import Tokenizer
from showo2.train.parallel import join
from showo2.train.recipe import Parallel
from showo2.train.start import EXPORT
from showo2.train.trainer import Trainer
from showo2.vae import WanVAE

PARTS = ("attention", "resume", "vae", "draw", *(f"train-{name}" for name in STEPS), "released")
# Bytes that the dry run counts for the same steps; needs no GPU, and time that a GPU need not wait for.
COUNT = "count"


@dataclass(frozen=True)
class Options(Where):
    """json: where to write the report; parts: what to measure; small: a rehearsal on a CPU, with tiny sizes and few rounds;
    limit: seconds that a part may take; one: (inner use) measure this part and print it."""

    json: str = "build/benchmarks/gpu.json"
    parts: tuple[str, ...] = PARTS
    limit: float = 150.0
    one: str = ""


def measure_vae(options: Where) -> Found:
    """Pictures and clips a second, by precision and layout, ours against AutoencoderKLWan; and how exact they are."""
    device, side, n = options.device, *((64, 2) if options.small else (432, 16))
    pictures = torch.rand(n, 3, 1, side, side, device=device) * 2 - 1
    clips = torch.rand(1, 3, 5 if options.small else 17, side, side, device=device) * 2 - 1
    torch.backends.cudnn.allow_tf32 = False
    exact = wan(options, torch.float32)
    truth, clip_truth = exact.encode(pictures), exact.encode(clips)
    torch.backends.cudnn.allow_tf32 = True
    found: Found = []

    def add(what: str, vae: WanVAE, clips_too: bool = True) -> None:
        error = (vae.encode(pictures) - truth).norm() / truth.norm()
        found.append(Row(f"VAE {what}: pictures", n / seconds(lambda: vae.encode(pictures), options), "1/s"))
        found.append(Row(f"VAE {what}: error of latents", error.item(), ""))
        if clips_too:
            error = (vae.encode(clips) - clip_truth).norm() / clip_truth.norm()
            found.append(Row(f"VAE {what}: clips", 1 / seconds(lambda: vae.encode(clips), options, 3), "1/s"))
            found.append(Row(f"VAE {what}: error of clips' latents", error.item(), ""))

    torch.backends.cudnn.allow_tf32 = False
    add("fp32", exact, False)
    torch.backends.cudnn.allow_tf32 = True
    add("tf32", exact)
    exact.compile()
    add("tf32, compiled", exact, False)
    half = wan(options)
    add("bf16", half)
    latents = half.encode(pictures)
    found.append(Row("VAE bf16: pictures decoded", n / seconds(lambda: half.decode(latents), options), "1/s"))
    half.compile()
    add("bf16, compiled", half, False)
    for name, vae in (("tf32", exact), ("bf16", half)):
        with torch.no_grad():
            theirs = n / seconds(lambda vae=vae: vae.network._encode(pictures.to(vae.dtype)), options)
        found.append(Row(f"AutoencoderKLWan {name}: pictures", theirs, "1/s"))
    return found


def measure_attention(options: Where) -> Found:
    """FlexAttention on packed documents against SDPA with a dense mask: equal in fp32, and the time of both in bf16."""
    device, n, width = options.device, *((256, 16) if options.small else (8192, 128))
    spans = n // 8
    doc = torch.arange(n, device=device)[None] // spans + 1
    place = torch.arange(n, device=device)[None] % spans
    span = torch.where((place >= spans // 8) & (place < spans - spans // 32), doc, 0)
    found: Found = []
    # CPUs have no backward pass of FlexAttention.
    flex = additive(dense_mask(doc, span)) if options.small else block_mask(doc, span)
    masks: dict[str, Tensor | BlockMask] = {"flex": flex, "dense": additive(dense_mask(doc, span))}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        q, k, v, grad = (torch.randn(1, heads, n, width, device=device, dtype=dtype) for heads in (12, 2, 2, 12))
        results = {}
        for way, mask in masks.items():
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]

            def call(inputs: list[Tensor] = inputs, mask: Tensor | BlockMask = mask, grad: Tensor = grad) -> tuple[Tensor, ...]:
                out = attend(*inputs, mask)
                return out.detach(), *torch.autograd.grad(out, inputs, grad)

            results[way] = call()
            if dtype == torch.bfloat16:
                found.append(Row(f"attention of 8 documents in {n} tokens, forward and backward, {way}, bf16",
                                 seconds(call, options), "s"))
        worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(*results.values(), strict=True))
        name = str(dtype).removeprefix("torch.")
        found.append(Aim(f"FlexAttention and SDPA, {name}: largest difference of output or gradient", worst, "<=",
                         1e-5 if dtype == torch.float32 else 1e-2))
    found.append(Row(f"block mask of {n} tokens", seconds(lambda: block_mask(doc, span), options), "s"))
    return found


def measure_resume(options: Where) -> Found:
    """The real trainer (NCCL, bf16, compiled, 12.9 M parameters): a run that is stopped and resumed, and one that is not."""
    steps, half = 12, 6
    parallel = Parallel(precision="bf16", compile=not options.small)
    recipe = replace(small_recipe(steps), parallel=parallel, checkpoint_every=half)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for run, stops in (("whole", []), ("again", []), ("broken", [half])):
            outcomes = []
            for last in (*stops, steps):
                asked = count(1)
                out = Trainer(recipe, (str(folder / "data"),), folder / run, str(folder / "model"), join(options.device),
                              stop=lambda asked=asked, last=last: next(asked) == last)
                outcomes.append(out.run())
            assert outcomes == ["stopped"] * len(stops) + ["finished"], outcomes
        whole, again, broken = (read(folder / run / EXPORT) for run in ("whole", "again", "broken"))
    moved = max((whole[k] - broken[k]).abs().max().item() for k in whole)
    second = max((whole[k] - again[k]).abs().max().item() for k in whole)
    return [Aim("two runs: largest difference of a weight", second, "==", 0),
            Aim("stopped and resumed, against not: largest difference of a weight", moved, "==", 0)]


def measure_draw(options: Where) -> Found:
    """Pictures of the 1.5B model in bf16 (50 points, guidance 5, 432 px, decoded), and greedy answers about them."""
    recipe = share("1.5b-stage2c", options.small)
    vocabulary = Tokenizer.from_pretrained("tiny:llm")
    config = config_of(recipe, options.small)
    model = random_model(config, options.device).to(torch.bfloat16)
    pipe = Showo2Pipeline(model, vocabulary, wan(options))
    points, side = (3, 48) if options.small else (50, recipe.model.size)
    found: Found = []
    for batch in (1, 16):
        prompts = ["a red circle left of a blue square"] * batch
        took = seconds(lambda prompts=prompts: pipe.image(prompts, points=points, size=side, batch=16), options, 2)
        found.append(Row(f"draw {batch} of {side} px, {points} points, guidance 5", took / batch, "s a picture"))
    latents, tokens = torch.randn(16, 1, side // 8, side // 8), 4 if options.small else 64
    for batch in (1, 32):
        documents = [[Text([1, 2, 3]), Media(latents), Text([4] * 16)]] * batch
        took = seconds(lambda d=documents: greedy(model, vocabulary.special, d, tokens), options, 2)
        made = sum(map(len, greedy(model, vocabulary.special, documents, tokens)))
        found.append(Row(f"answer {batch} questions about a picture of {length(documents[0])} tokens, {made} tokens in all",
                         made / took, "tokens/s"))
    return found


def measure(part: str, options: Where) -> Found:
    """The part of that name."""
    if part.startswith("train-"):
        return measure_step(part.removeprefix("train-"), options)
    ways = {"attention": measure_attention, "resume": measure_resume, "vae": measure_vae, "draw": measure_draw,
            "released": measure_released, COUNT: count_bytes}
    return ways[part](options)


def told(options: Options, log: IO[str]) -> Iterator[Found]:
    """What each part found, as soon as it has; what they complain of goes to `log`."""
    for part in options.parts:
        command = [sys.executable, "-m", "benchmarks.gpu", "--one", part, *["--small"] * options.small]
        begin = time.monotonic()
        try:
            run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=options.limit)
            log.write(f"--- {part}\n{run.stderr}\n")
            problem = run.stderr[-3000:] if run.returncode else ""
        except subprocess.TimeoutExpired as error:
            problem = f"took more than {options.limit:.0f} s\n{(error.stderr or b'')[-1500:].decode()}"
        print(f"{part}: {time.monotonic() - begin:.0f} s{' FAILED' if problem else ''}\n{problem}", flush=True)
        if not problem:
            found = json.loads(run.stdout.splitlines()[-1])
            print(*(f"  {item['name']}: {item['value']:.5g} {item.get('unit', '')}" for item in found), sep="\n", flush=True)
            yield [(Aim if "aim" in item else Row)(**item) for item in found]


def main(options: Options) -> None:
    """Measure part after part, and write what was found."""
    if options.one:
        print(json.dumps([vars(item) for item in measure(options.one, options)]))
        return
    if not options.small and options.parts != (COUNT,) and not torch.cuda.is_available():
        raise SystemExit(f"no GPU here; --small rehearses on a CPU, and --parts {COUNT} needs none")
    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    with open(Path(options.json).with_suffix(".log"), "w") as log:
        found = [item for part in told(options, log) for item in part]
    Report("gpu", [x for x in found if isinstance(x, Row)], [x for x in found if isinstance(x, Aim)]).write(options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
