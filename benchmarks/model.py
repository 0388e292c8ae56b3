"""A training step of the model against the released way of computing it: FLOPs, CPU time, peak memory, equal results.

12.9 M parameters, 54x54 latents, 3 generation samples and 1 caption, one thread. The released way pads every sample to
1024 tokens. Each side runs in a process of its own; rounds alternate. "compiled" is ours with every block compiled, as
the paper's recipes run it (`showo2.train.parallel`); its FLOPs are those of "ours".

    python -m benchmarks.model --json FILE
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import released
from benchmarks._report import Aim, Report, Row
from showo2.model import FlowHeadConfig, Losses, Showo2, Showo2Config
from showo2.sequence import IGNORE, Media, captioning, length, pack, text_to_image
from showo2.text import SpecialTokens
from showo2.train.parallel import Workers, blocks, parallelize
from showo2.train.recipe import Parallel

SPECIAL = SpecialTokens(*range(8183, 8192))
CONTEXT, SIDE, VOCABULARY = 1024, 54, 8192
PROMPT_TOKENS, CAPTION_TOKENS = 50, 150


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    b, h, n, e = q
    return 2 * b * h * n * k[2] * (e + v[3])


def _attention_backward_flops(_grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: object,
                              **__: object) -> int:
    return 2 * _attention_flops(q, k, v)


# PyTorch's counter does not know the CPU's fused attention. A backward is four products, as if the scores were kept.
ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def build_model(side: str) -> Showo2:
    """12.9 M parameters, every one of them random (adaLN's zeros would hide differences), run as `side` runs it."""
    torch.manual_seed(0)
    llm = {"model_type": "qwen2", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
           "num_key_value_heads": 2, "intermediate_size": 1024, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    siglip = {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 512,
              "image_size": 432, "patch_size": 16}
    model = Showo2(Showo2Config(llm, siglip, FlowHeadConfig(256, 4, 4, 2, 64, 1024)))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.03)
    if side == "theirs":
        return released.without_savings(model)
    if side == "compiled":
        parallelize(model, blocks(model), Workers(), Parallel(compile=True))
    return model


def samples() -> list[tuple[list[int], Media, bool]]:
    """Text ids, picture, and whether the picture is drawn (else captioned)."""
    g = torch.Generator().manual_seed(1)
    made = []
    for drawn in (True, True, True, False):
        x1, x0 = (torch.randn(16, 1, SIDE, SIDE, generator=g) for _ in range(2))
        ids = torch.randint(0, 8000, (PROMPT_TOKENS if drawn else CAPTION_TOKENS,), generator=g).tolist()
        t = torch.rand(1, generator=g).item()
        made.append((ids, Media(x1, t, x0, True) if drawn else Media(x1), drawn))
    return made


def ours(model: Showo2) -> tuple[Tensor, Tensor]:
    """Both losses, the documents packed into one row of a multiple of 128 tokens."""
    documents = [text_to_image(SPECIAL, ids, media) if drawn else captioning(SPECIAL, media, ids)
                 for ids, media, drawn in samples()]
    context = -(-sum(map(length, documents)) // 128) * 128
    packed = pack([documents], context, SPECIAL)
    out: Losses = model(packed)
    text, velocity = packed.targets
    return out.ntp / text, out.flow / velocity


def theirs(model: Showo2) -> tuple[Tensor, Tensor]:
    """Both losses as the released trainer computes them."""
    return released.forward(model, released_batch())


def released_batch() -> released.ReleasedBatch:
    """The same samples, one a row of 1024 tokens."""
    ids, labels, learned, spans, latents, velocity, times = [], [], [], [], [], [], []
    for text, media, drawn in samples():
        document = text_to_image(SPECIAL, text, media) if drawn else captioning(SPECIAL, media, text)
        packed = pack([[document]], CONTEXT, SPECIAL)
        start = int(packed.visuals[0].start)
        row = torch.zeros(CONTEXT, dtype=torch.int64)
        if drawn:
            row[start + 1:start + media.tokens] = 1
        label = torch.full((CONTEXT,), IGNORE)
        label[1:] = packed.labels[0, :-1]
        ids.append(packed.ids[0])
        labels.append(label)
        learned.append(row)
        spans.append((start, media.tokens))
        x1, x0 = media.latents[:, 0], torch.zeros(16, SIDE, SIDE) if media.noise is None else media.noise[:, 0]
        latents.append(media.t * x1 + (1 - media.t) * x0)
        velocity.append(x1 - x0)
        times.append(media.t)
    return released.ReleasedBatch(torch.stack(ids), torch.stack(labels), torch.stack(learned), spans,
                                  torch.stack(latents), torch.stack(velocity), torch.tensor(times))


WAYS = {"ours": ours, "compiled": ours, "theirs": theirs}


def step(model: Showo2, side: str) -> dict[str, float]:
    """One forward and backward: the two losses, and CPU seconds of each pass."""
    start = time.process_time()
    ntp, flows = WAYS[side](model)
    middle = time.process_time()
    (0.2 * ntp + flows).backward()
    return {"ntp": ntp.item(), "flow": flows.item(), "forward_cpu_s": middle - start,
            "backward_cpu_s": time.process_time() - middle, "step_cpu_s": time.process_time() - start}


def count_flops(model: Showo2, side: str) -> dict[str, float]:
    """GFLOP of a forward, a backward and both."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        ntp, flows = WAYS[side](model)
        forward = counter.get_total_flops() / 1e9
        (0.2 * ntp + flows).backward()
    whole = counter.get_total_flops() / 1e9
    return {"forward_gflop": forward, "backward_gflop": whole - forward, "step_gflop": whole}


def measure(side: str) -> dict[str, float]:
    """Of `side`: times (median of 3 steps after a warm-up), FLOPs, losses, and peak memory over the start."""
    torch.set_num_threads(1)
    model = build_model(side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps = []
    for _ in range(4):
        model.zero_grad()
        steps.append(step(model, side))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.zero_grad()
    flops = {} if side == "compiled" else count_flops(model, side)
    return {**{key: median(found[key] for found in steps[1:]) for key in steps[0]}, **flops,
            "peak_mib": (peak - before) / 1024}


def largest_gradient_difference(side: str) -> float:
    """Largest difference in norm between `side`'s gradients and the released way's, relative to the parameter's norm
    (or, where that is next to nothing, to a millionth of the whole gradient's)."""
    models = [build_model(way) for way in (side, "theirs")]
    for model, way in zip(models, (side, "theirs"), strict=True):
        step(model, way)
    pairs = [(a.grad, b.grad) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)]
    whole = torch.stack([b.norm() for _, b in pairs]).norm()
    return max(((a - b).norm() / b.norm().clamp(1e-6 * whole)).item() for a, b in pairs)


@dataclass(frozen=True)
class Options:
    """json: where to write the report; rounds: alternating rounds; side: (inner use) measure one side and print it."""

    json: str = "build/benchmarks/model.json"
    rounds: int = 3
    side: str = ""


def main(options: Options) -> None:
    """Measure the sides in turn and report the ratios of medians."""
    if options.side:
        print(json.dumps(measure(options.side)))
        return
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in WAYS}
    for _ in range(options.rounds):
        for side, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.model", "--side", side]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    value = {(side, key): median(run[key] for run in found) for side, found in runs.items() for key in found[0]}
    rows = [Row(f"{side} {key}", v, key.rsplit("_", 1)[-1]) for (side, key), v in value.items()]
    aims = [Aim(f"{key}, {side} / released", value[side, key] / value["theirs", key], "<=", aim)
            for side, key, aim in (("ours", "step_gflop", 0.6), ("compiled", "step_cpu_s", 0.5),
                                   ("ours", "peak_mib", 0.5), ("compiled", "peak_mib", 0.5))]
    for side in ("ours", "compiled"):
        difference = max(abs(value[side, k] - value["theirs", k]) for k in ("ntp", "flow"))
        aims += [Aim(f"{side}: largest difference of a loss", difference, "<=", 1e-5),
                 Aim(f"{side}: largest relative difference of a gradient", largest_gradient_difference(side), "<=", 1e-4)]
    Report("model", rows, aims).write(options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
