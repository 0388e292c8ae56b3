"""The training steps of `benchmarks.gpu`: what one GPU of many does in a step of the paper's recipes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from statistics import median

import torch
from torch import Tensor

from benchmarks import released
from benchmarks._report import Aim, Row
from benchmarks.train_step import released_batch
from showo2 import recipes
from showo2.model import Showo2, Showo2Config
from showo2.sequence import Packed, pack
from showo2.text import SpecialTokens
from showo2.train.cost import flops, peak
from showo2.train.dry_run import dry_run, rows
from showo2.train.losses import Unified
from showo2.train.optimizer import Average, build_optimizer, clip, freeze, set_rate, squared_norm
from showo2.train.parallel import blocks, join, parallelize
from showo2.train.recipe import Recipe
from showo2.vae import WanVAE

SPECIAL = SpecialTokens(*range(9))
# Recipes whose step is measured, and the GPUs that share their global batch.
STEPS = {"1.5b-stage1a": 64, "1.5b-stage2c": 64, "1.5b-stage1-video": 64, "1.5b-high1024": 64, "7b-align": 128}
Found = list[Row | Aim]


@dataclass(frozen=True)
class Where:
    """small: a rehearsal on a CPU, with tiny sizes and few rounds."""

    small: bool = False

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu" if self.small else "cuda")


def seconds(call: Callable[[], object], options: Where, rounds: int | None = None, warm: int = 2) -> float:
    """Median time of `call`, after `warm` that are not counted."""
    times = []
    for _ in range(warm + (rounds or (2 if options.small else 8))):
        begin = time.perf_counter()
        call()
        if options.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return median(times[warm:])


def wan(options: Where, dtype: torch.dtype = torch.bfloat16) -> WanVAE:
    """The VAE of the real architecture (a rehearsal's is narrow), with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    config = {"base_dim": 16} if options.small else {}
    torch.manual_seed(0)
    return WanVAE(config, AutoencoderKLWan(**config).state_dict(), dtype, options.device)


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

    def __init__(self, model: Showo2, recipe: Recipe, options: Where, sums: Callable[[], Tensor], weights: Tensor):
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


def ours(model: Showo2, recipe: Recipe, options: Where, batches: list[Packed]) -> Stepper:
    """The step that the trainer makes on the first of `batches`, whatever that then is."""
    objective = Unified(model, recipe.alpha)
    weights = torch.tensor(objective.weights[:2]) / torch.tensor(objective.counts(batches[0])[:2]).clamp(min=1)
    return Stepper(model, recipe, options, lambda: objective.sums(batches[0].to(options.device)), weights)


def measure_step(name: str, options: Where) -> Found:
    """A step of a recipe: time, tokens, use of the arithmetic, memory."""
    recipe = share(name, options.small)
    config = config_of(recipe, options.small)
    closely = name == "1.5b-stage1a"
    found = _step_rows(f"{name}, compiled", recipe, config, options, closely)
    if closely:
        eager = replace(recipe, parallel=replace(recipe.parallel, compile=False))
        found += _step_rows(f"{name}, eager", eager, config, options, False)
    return found


def count_bytes(options: Where) -> Found:
    """Peak memory of the same steps, uncompiled, as the dry run counts it."""
    shares = {name: share(name, options.small) for name in STEPS}
    return [Row(f"{name}: peak memory by the dry run", dry_run(r, config_of(r, options.small), 1).peak / 1e9, "GB")
            for name, r in shares.items()]


def _step_rows(what: str, recipe: Recipe, config: Showo2Config, options: Where, closely: bool) -> Found:
    """Of a step; `closely`: also of steps whose lengths change."""
    device = options.device
    packed = rows(recipe, 1)
    micro = pack(packed, recipe.context, SPECIAL)
    # What follows a whole batch in training is never quite as long.
    others = [pack([packed[0][i:], *packed[1 + i // 2:]], recipe.context, SPECIAL) for i in range(4)]
    batches = [micro]
    step = ours(random_model(config, device), recipe, options, batches)
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
            batches[0] = other
            times.append(seconds(step, options, 1, warm=0) / max(1, int((other.doc > 0).sum())) * tokens / took)
        changed = [Row(f"{what}: a token where lengths change, at first", max(times), "times as long"),
                   Row(f"{what}: a token where lengths change, then", median(times[len(others):]), "times as long")]
    return [Row(f"{what}: a step of {samples} samples", took, "s"), Row(f"{what}: tokens", tokens / took, "1/s"),
            Row(f"{what}: MFU", work.useful / took / top, ""), Row(f"{what}: HFU", work.done / took / top, ""),
            Row(f"{what}: peak memory", held, "GB"), Row(f"{what}: the first step, compiling", first, "s"), *changed]


def measure_released(options: Where) -> Found:
    """A step of stage 1a as the released trainer computes it, its VAE beside, on the same GPU; and ours."""
    recipe, device = share("1.5b-stage1a", options.small), options.device
    eager = replace(recipe, parallel=replace(recipe.parallel, compile=False))
    config = config_of(recipe, options.small)
    packed = rows(recipe, 1)
    documents = [document for row in packed for document in row]
    batches = [pack(packed, recipe.context, SPECIAL)]
    took = {"ours": seconds(ours(random_model(config, device), recipe, options, batches), options)}
    batch = released_batch([pack([[d]], recipe.context, SPECIAL) for d in documents], recipe.bucket, recipe.context).to(device)
    theirs = released.without_savings(random_model(config, device))
    # What shards a model does so around its forward.
    theirs.forward = lambda batch: torch.stack(released.forward(theirs, batch))
    step = Stepper(theirs, eager, options, lambda: theirs(batch), torch.tensor([recipe.alpha, 1.0]))
    took["released"] = seconds(step, options)
    vae, side = wan(options), 8 * recipe.bucket[1]
    pixels = torch.rand(len(documents), 3, 1, side, side, device=device, dtype=vae.dtype) * 2 - 1

    def online() -> None:
        with torch.no_grad():
            vae.network._encode(pixels)

    vae_s = seconds(online, options)
    samples = len(documents)
    found: Found = [Row(f"1.5b-stage1a, {side}: a step of {samples} samples", s, "s") for side, s in took.items()]
    found.append(Row("AutoencoderKLWan encodes these pictures", vae_s, "s"))
    found.append(Aim("stage 1a, released / ours", took["released"] / took["ours"], ">=", 2))
    found.append(Aim("stage 1a, released with its VAE / ours", (took["released"] + vae_s) / took["ours"], ">=", 5))
    return found
