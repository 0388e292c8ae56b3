"""What the training of every part shares: pictures, batches, the optimisation loop, storage."""

import io
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from showo2.hardware import has_bf16
from showo2.tiny.render import render
from showo2.tiny.world import MIX, Scene, draw_scene

SIZE = 64  # pixels a side that every part works at


def draw_scenes(
    count: int, seed: int, held_out: bool | None = False, mix: tuple[int, int, int, int] = MIX
) -> list[Scene]:
    """`count` scenes: for training, held out, or (None) any."""
    rng = random.Random(seed)
    return [draw_scene(rng, held_out, mix) for _ in range(count)]


def share(count: int, effort: float) -> int:
    """How many of `count` scenes an effort below 1 is worth."""
    return round(count * min(1.0, effort))


def photograph(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene at 64 px as curation delivers it: a large JPEG, made small with a bicubic filter."""
    buffer = io.BytesIO()
    render(scene, rng.choice((256, 320, 384))).save(buffer, "JPEG", quality=rng.randint(75, 95))
    return Image.open(buffer).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def pictures(scenes: Sequence[Scene], seed: int, photographs: float = 0.2) -> np.ndarray:
    """(N, 64, 64, 3) uint8: a share of photographs, the rest drawn directly at 64 px."""
    rng = random.Random(seed)
    shots = (photograph(s, rng) if rng.random() < photographs else render(s, SIZE) for s in scenes)
    return np.stack([np.asarray(shot) for shot in shots])


def to_pixels(images: np.ndarray, noise: float = 0.0) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1], with Gaussian noise of `noise` grey levels."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if noise:
        pixels += torch.randn_like(pixels) * noise
    return (pixels / 127.5 - 1).clamp(-1, 1)


def batches(
    count: int, size: int, steps: int, seed: int, length: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """`steps` batches of `size` random indices below `count`; with `length`, each holds items of near lengths.

    ValueError where there are fewer items than a batch takes.
    """
    if count < size:
        raise ValueError(f"{count} items do not fill a batch of {size}: give more --effort")
    rng = np.random.default_rng(seed)
    drawn = 0
    while drawn < steps:
        pool = rng.permutation(count)[: size * 32]
        if length is not None:
            pool = pool[np.argsort(np.asarray(length)[pool], kind="stable")]
        chunks = [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
        for i in rng.permutation(len(chunks))[: steps - drawn]:
            yield chunks[i]
            drawn += 1


def fit(
    name: str,
    model: nn.Module,
    steps: int,
    lr: float,
    loss_of: Callable[[int], Tensor],
    weight_decay: float = 0.0,
    bf16: bool = False,
) -> None:
    """AdamW with a short warm-up and a cosine to zero over `steps`; says every 100 steps how it goes.

    bf16: of matrix products, where the processor has it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    warm_up = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    recent: list[float] = []
    start = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16, bf16 and has_bf16()):
            loss = loss_of(step - 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-49:], loss.item()]
        if step % 100 == 0 or step == steps:
            rate = step / (time.monotonic() - start)
            left = (steps - step) / rate / 60
            mean = sum(recent) / len(recent)
            print(
                f"{name} {step}/{steps}: loss {mean:.4f}, {rate:.1f} steps/s, {left:.1f} min left", flush=True
            )
    model.eval()


def halve(folder: Path) -> None:
    """Store a saved model's weights as float16, while its config goes on to say float32, in which it is used."""
    for path in folder.glob("*.safetensors"):
        weights = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    config = folder / "config.json"
    values = json.loads(config.read_text())
    if "dtype" in values:
        values["dtype"] = "float32"
    for part in [values, *(value for value in values.values() if isinstance(value, dict))]:
        part.pop("_name_or_path", None)  # where a part lay when this one was trained
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
