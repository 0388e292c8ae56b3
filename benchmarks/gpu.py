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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import IO

import torch
import tyro
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from benchmarks import released
from benchmarks._report import Aim, Report, Row
from benchmarks.train_step import prepare, released_batch
from benchmarks.train_step import recipe as small_recipe
from showo2 import recipes
from showo2.generate import Showo2Pipeline
from showo2.generate.decoder import greedy
from showo2.model import Showo2, Showo2Config
from showo2.model.attention import additive, attend, block_mask, dense_mask
from showo2.model.weights import read
from showo2.sequence import Media, Text, length, pack
from showo2.text import SpecialTokens, Tokenizer
from showo2.train.cost import flops, peak
from showo2.train.dry_run import dry_run, rows
from showo2.train.losses import Unified
from showo2.train.optimizer import Average, build_optimizer, clip, freeze, set_rate, squared_norm
from showo2.train.parallel import blocks, join, parallelize
from showo2.train.recipe import Parallel, Recipe
from showo2.train.start import EXPORT
from showo2.train.trainer import Trainer
from showo2.vae import WanVAE

SPECIAL = SpecialTokens(*range(9))
# Recipes whose step is measured, and the GPUs that share their global batch.
STEPS = {"1.5b-stage1a": 64, "1.5b-stage2c": 64, "1.5b-stage1-video": 64, "1.5b-high1024": 64, "7b-align": 128}
PARTS = ("attention", "resume", "vae", "draw", *(f"train-{name}" for name in STEPS), "released")
# Bytes that the dry run counts for the same steps; needs no GPU, and time that a GPU need not wait for.
COUNT = "count"
Found = list[Row | Aim]


@dataclass(frozen=True)
class Options:
    """json: where to write the report; parts: what to measure; small: a rehearsal, with tiny sizes and few rounds;
    limit: seconds that a part may take; one: (inner use) measure this part and print it."""

    json: str = "build/benchmarks/gpu.json"
    parts: tuple[str, ...] = field(default=PARTS)
    small: bool = False
    limit: float = 150.0
    one: str = ""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu" if self.small else "cuda")

    @property
    def rounds(self) -> int:
        """Timed calls of everything."""
        return 2 if self.small else 8


def seconds(call: Callable[[], object], options: Options, rounds: int | None = None, warm: int = 2) -> float:
    """Median time of `call`, after `warm` that are not counted."""
    times = []
    for _ in range(warm + (rounds or options.rounds)):
        begin = time.perf_counter()
        call()
        if options.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return median(times[warm:])


# ----------------------------------------------------------------------------------------------------- training


def share(name: str, small: bool) -> Recipe:
    """A recipe as one GPU of many sees it: its part of the global batch, nothing to share weights with."""
    recipe = recipes.get(name)
    mixture = tuple(replace(e, samples=max(1, e.samples // STEPS[name])) for e in recipe.mixture)
    recipe = replace(recipe, mixture=mixture, parallel=replace(recipe.parallel, shard=0))
    if not small:
        return recipe
    mixture = tuple(replace(e, samples=1, bucket=(e.bucket or (1,))[:1] + (6, 6)) for e in mixture)
    return replace(recipe, mixture=mixture, context=512, model=replace(recipe.model, size=48),
                   parallel=replace(recipe.parallel, shard=0, compile=False))


def config_of(recipe: Recipe, small: bool) -> Showo2Config:
    """The recipe's model; a rehearsal's is narrow and as deep as needs be to show a compiler's limits."""
    config = recipes.model_config(recipe)
    if not small:
        return config
    llm = config.llm | {"hidden_size": 64, "num_hidden_layers": 10, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "intermediate_size": 96, "vocab_size": 512}
    siglip = config.siglip | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    return replace(config, llm=llm, siglip=siglip,
                   flow=replace(config.flow, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=96))


def random_model(config: Showo2Config, device: torch.device) -> Showo2:
    """Random everywhere: adaLN's zeros would be multiplied faster than numbers."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Showo2(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.02)
    return model


class Stepper:
    """A training step of `recipe` on one batch, as the trainer makes it; `sums` gives the two terms of the loss."""

    def __init__(self, model: Showo2, recipe: Recipe, options: Options, sums: Callable[[], Tensor], weights: Tensor):
        trained = freeze(model, recipe)
        workers = join(options.device)
        parallelize(model, blocks(model), workers, recipe.parallel)
        self.trained = {name: p for name, p in model.named_parameters() if name in trained}
        self.optimizer = build_optimizer(self.trained, recipe)
        self.average = Average(self.trained, recipe.ema)
        self.recipe, self.sums, self.weights, self.done = recipe, sums, weights.to(options.device), count()

    def __call__(self) -> None:
        (self.sums()[:2] * self.weights).sum().backward()
        norm = squared_norm(self.trained.values()).sqrt().item()
        clip(self.trained.values(), norm, self.recipe.clip)
        set_rate(self.optimizer, 1.0)
        self.optimizer.step()
        self.average.update(next(self.done))
        self.optimizer.zero_grad(set_to_none=True)


def measure_step(name: str, options: Options) -> Found:
    """A step of a recipe: time, tokens, use of the arithmetic, memory."""
    recipe = share(name, options.small)
    config = config_of(recipe, options.small)
    closely = name == "1.5b-stage1a"
    found = _step_rows(f"{name}, compiled", recipe, config, options, closely)
    if closely:
        eager = replace(recipe, parallel=replace(recipe.parallel, compile=False))
        found += _step_rows(f"{name}, eager", eager, config, options, False)
    return found


def count_bytes(options: Options) -> Found:
    """Peak memory of the same steps, uncompiled, as the dry run counts it."""
    shares = {name: share(name, options.small) for name in STEPS}
    return [Row(f"{name}: peak memory by the dry run", dry_run(r, config_of(r, options.small), 1).peak / 1e9, "GB")
            for name, r in shares.items()]


def _step_rows(what: str, recipe: Recipe, config: Showo2Config, options: Options, closely: bool) -> Found:
    """Of a step; `closely`: also of steps whose lengths change."""
    device = options.device
    packed = rows(recipe, 1)
    micro = pack(packed, recipe.context, SPECIAL)
    # What follows a whole batch in training is never quite as long.
    others = [pack([packed[0][i:], *packed[1 + i // 2:]], recipe.context, SPECIAL) for i in range(4)]
    model = random_model(config, device)
    objective, batch = Unified(model, recipe.alpha), [micro.to(device)]
    weights = torch.tensor(objective.weights[:2]) / torch.tensor(objective.counts(micro)[:2]).clamp(min=1)
    step = Stepper(model, recipe, options, lambda: objective.sums(batch[0]), weights)
    first = seconds(step, options, 1, warm=0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = seconds(step, options)
    held = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    work, top, tokens = flops(micro, config, recipe), peak(device) or float("nan"), int((micro.doc > 0).sum())
    samples = sum(entry.samples for entry in recipe.mixture)
    changed: Found = []
    if closely:
        times = []
        for other in [*others, *others]:
            batch[0] = other.to(device)
            times.append(seconds(step, options, 1, warm=0) / max(1, int((other.doc > 0).sum())) * tokens / took)
        changed = [Row(f"{what}: a token where lengths change, at first", max(times), "times as long"),
                   Row(f"{what}: a token where lengths change, then", median(times[len(others):]), "times as long")]
    del step
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return [Row(f"{what}: a step of {samples} samples", took, "s"), Row(f"{what}: tokens", tokens / took, "1/s"),
            Row(f"{what}: MFU", work.useful / took / top, ""), Row(f"{what}: HFU", work.done / took / top, ""),
            Row(f"{what}: peak memory", held, "GB"), Row(f"{what}: the first step, compiling", first, "s"), *changed]


def measure_released(options: Options) -> Found:
    """A step of stage 1a as the released trainer computes it, its VAE beside, on the same GPU; and ours."""
    recipe, device = share("1.5b-stage1a", options.small), options.device
    recipe = replace(recipe, parallel=replace(recipe.parallel, compile=False))
    config = config_of(recipe, options.small)
    documents = [[document] for row in rows(recipe, 1) for document in row]
    ours, theirs = random_model(config, device), random_model(config, device)
    micro = pack(rows(recipe, 1), recipe.context, SPECIAL)
    objective, packed = Unified(ours, recipe.alpha), micro.to(device)
    weights = torch.tensor(objective.weights[:2]) / torch.tensor(objective.counts(micro)[:2]).clamp(min=1)
    plan = replace(recipe, parallel=recipes.get(recipe.name).parallel if not options.small else recipe.parallel)
    plan = replace(plan, parallel=replace(plan.parallel, shard=0))
    took = {"ours, compiled": seconds(Stepper(ours, plan, options, lambda: objective.sums(packed), weights), options)}
    del ours
    batch = released_batch([pack([d], recipe.context, SPECIAL) for d in documents], recipe.bucket, recipe.context).to(device)
    released.without_savings(theirs)
    # What shards a model does so around its forward.
    theirs.forward = lambda batch: torch.stack(released.forward(theirs, batch))
    took["released"] = seconds(Stepper(theirs, recipe, options, lambda: theirs(batch), torch.tensor([recipe.alpha, 1.0])), options)
    vae, side = wan(options), 8 * recipe.bucket[1]
    pixels = torch.rand(len(documents), 3, 1, side, side, device=device, dtype=vae.dtype) * 2 - 1

    def online() -> None:
        with torch.no_grad():
            vae.network._encode(pixels)

    vae_s = seconds(online, options)
    samples = len(documents)
    found: Found = [Row(f"1.5b-stage1a, {side}: a step of {samples} samples", s, "s") for side, s in took.items()]
    found.append(Row("AutoencoderKLWan encodes these pictures", vae_s, "s"))
    found.append(Aim("stage 1a, released / ours", took["released"] / took["ours, compiled"], ">=", 2))
    found.append(Aim("stage 1a, released with its VAE / ours", (took["released"] + vae_s) / took["ours, compiled"], ">=", 5))
    return found


# ------------------------------------------------------------------------------------------------------ the rest


def wan(options: Options, dtype: torch.dtype = torch.bfloat16) -> WanVAE:
    """The VAE of the real architecture (a rehearsal's is narrow), with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    config = {"base_dim": 16} if options.small else {}
    torch.manual_seed(0)
    return WanVAE(config, AutoencoderKLWan(**config).state_dict(), dtype, options.device)


def measure_vae(options: Options) -> Found:
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
    add("tf32, compiled", exact.compiled(), False)
    half = wan(options)
    add("bf16", half)
    latents = half.encode(pictures)
    found.append(Row("VAE bf16: pictures decoded", n / seconds(lambda: half.decode(latents), options), "1/s"))
    add("bf16, compiled", half.compiled(), False)
    for name, vae in (("tf32", exact), ("bf16", half)):
        with torch.no_grad():
            theirs = n / seconds(lambda vae=vae: vae.network._encode(pictures.to(vae.dtype)), options)
        found.append(Row(f"AutoencoderKLWan {name}: pictures", theirs, "1/s"))
    return found


def measure_attention(options: Options) -> Found:
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


def measure_resume(options: Options) -> Found:
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


def measure_draw(options: Options) -> Found:
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


def measure(part: str, options: Options) -> Found:
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
