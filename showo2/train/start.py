"""What a run starts from, and what it leaves behind: models from parts or from an earlier run, and the export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from showo2.data.loader import read_blocklist
from showo2.data.sources import Source
from showo2.model import Showo2, Showo2Config, checkpoint
from showo2.model.transfer import SCALE_UP, transfer
from showo2.shards import Manifest
from showo2.store import Place, Where, scratch
from showo2.text import Tokenizer
from showo2.train.checkpoint import committed, read_tensors, step_of
from showo2.train.parallel import Workers
from showo2.train.recipe import Recipe

CONFIG = "config.json"
EXPORT = "export"
STORY = "training.json"
# Configuration and tokenizer of the run's model, for exports while it trains.
MODEL = "model"


def check(recipe: Recipe, data: tuple[str, ...], out: Where, init: str | None) -> list[Manifest]:
    """The manifests of `data`; raises what is wrong with a run before anything is built (ValueError, ShardError)."""
    if config := (Place(out) / CONFIG).read():
        name = json.loads(config)["recipe"]["name"]
        if name != recipe.name:
            raise ValueError(f"{out} holds a run of {name}; give {recipe.name} an --out of its own")
    if recipe.start == "parts" and init is not None:
        raise ValueError(f"recipe {recipe.name} starts from its parts ({recipe.model.llm}, {recipe.model.siglip}): "
                         "leave out --init, or name other parts with --model.llm and --model.siglip")
    if recipe.start != "parts":
        if init is None:
            raise ValueError(f"recipe {recipe.name} goes on from an earlier stage: give its run with --init RUN")
        _exported(init)
    if not data:
        raise ValueError(f"recipe {recipe.name} needs data: give dataset folders with --data")
    read_blocklist(recipe.blocklist)
    manifests = [Manifest.load(path) for path in data]
    for entry in recipe.mixture:
        if entry.samples:
            Source(entry, manifests, recipe.bucket, recipe.seed)
    return manifests


def build_model(recipe: Recipe, init: str | None, first: bool = True) -> tuple[Showo2, Tokenizer]:
    """The model and tokenizer that a stage starts from, the same on every rank; the `first` one tells of a transfer.

    init: a finished run, a folder or URL that `Showo2.from_pretrained` reads, a Hub id or a `tiny:` name.
    """
    if recipe.start == "parts":
        return from_parts(recipe)
    folder = _exported(str(init))
    if recipe.start == "transfer":
        model, tokenizer = from_parts(recipe)
        report = transfer(model, folder, SCALE_UP).check()
        if first:
            print(report)
        return model, tokenizer
    model = Showo2.from_pretrained(folder)
    model.config = replace(model.config, size=recipe.model.size, conversation=recipe.model.conversation)
    return model, Tokenizer.from_pretrained(folder)


def build_teacher(recipe: Recipe, init: str, tokenizer: Tokenizer, device: torch.device) -> Showo2:
    """The model of `init`, for `losses.Taught`. Raises ValueError where its tokens are others."""
    folder = _exported(init)
    if Tokenizer.from_pretrained(folder).inner.get_vocab() != tokenizer.inner.get_vocab():
        raise ValueError(f"{init} cannot teach {recipe.model.llm}: their tokenizers differ; leave it out with --taught 0")
    dtype = torch.bfloat16 if recipe.parallel.precision == "bf16" else torch.float32
    return Showo2.from_pretrained(folder, dtype=dtype).to(device)


def from_parts(recipe: Recipe) -> tuple[Showo2, Tokenizer]:
    """A new model of the recipe's pretrained parts, what is new in it drawn from the recipe's seed, and its tokenizer."""
    parts = recipe.model
    tokenizer = Tokenizer.from_pretrained(parts.llm)
    llm, siglip = checkpoint.part_configs(parts.llm, parts.siglip, tokenizer.vocab_size)
    config = Showo2Config(llm, siglip, parts.flow, parts.grid, order=parts.order, size=parts.size, vae=parts.vae,
                          conversation=parts.conversation)
    torch.manual_seed(recipe.seed)
    model = checkpoint.from_parts(config, parts.llm, parts.siglip)
    model.fusion.amplify(*parts.gains)
    return model, tokenizer


def _exported(init: str) -> str:
    run = Place(init)
    if (run / EXPORT / CONFIG).exists():
        return str(run / EXPORT)
    if (run / "checkpoints").names():
        raise FileNotFoundError(f"{run} has no {EXPORT}/: that run is not finished; run it again, it goes on")
    return init


def export(model: Showo2, average: dict[str, Tensor], tokenizer: Tokenizer, out: Place, workers: Workers,
           story: dict[str, Any]) -> None:
    """Write `out`/export, a `from_pretrained` folder of the averaged weights; every rank takes part.

    Sharded tensors are gathered one at a time and kept by the first rank only.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = average.get(name, tensor).detach()
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if workers.first:
            state[name] = whole.to("cpu", copy=True)
    if workers.first:
        target = out / EXPORT
        fresh = scratch(target) if target.remote else target.path.with_name(f"{EXPORT}.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        checkpoint.save_pretrained(model, fresh, state)
        tokenizer.save_pretrained(fresh)
        (fresh / STORY).write_text(json.dumps(story, indent=1))
        target.remove()
        if target.remote:
            target.put(fresh, last=(CONFIG, STORY))  # By these others know it, so nothing may miss then.
            shutil.rmtree(fresh)
        else:
            fresh.rename(target.path)
    workers.barrier()


def write_model(model: Showo2, tokenizer: Tokenizer, out: Path) -> None:
    """Write `out`/model: what a checkpoint needs beside its tensors to become a `from_pretrained` folder."""
    (out / MODEL).mkdir(parents=True, exist_ok=True)
    (out / MODEL / CONFIG).write_text(json.dumps(model.config.to_dict()))
    tokenizer.save_pretrained(out / MODEL)


def export_checkpoint(run: Where, target: Where, step: int | None = None, averaged: bool = True) -> int:
    """Make a `from_pretrained` folder of a checkpoint (the newest, or that of `step`) of a run, also while it trains.

    averaged: the average of weights, or the weights as they are. Needs no process group and no GPU. Returns the step;
    raises ValueError where there is no such checkpoint.
    """
    run, target = Place(run), Place(target)
    folders = {step_of(folder.name): folder for folder in committed(run / "checkpoints")}
    if not folders or step not in (None, *folders):
        wanted = "" if step is None else f" of step {step}"
        raise ValueError(f"{run} has no checkpoint{wanted}; it has {sorted(folders)}")
    step = max(folders) if step is None else step
    parts = read_tensors(folders[step], ("model", "average"))
    with torch.device("meta"):
        model = Showo2(Showo2Config.from_dict(json.loads((run / MODEL / CONFIG).read() or b"")))
    folder = scratch(target) if target.remote else target.path
    checkpoint.save_pretrained(model, folder, parts["model"] | (parts["average"] if averaged else {}))
    Tokenizer.from_pretrained((run / MODEL).where).save_pretrained(folder)
    if target.remote:
        target.put(folder, last=(CONFIG,))
        shutil.rmtree(folder)
    return step


def exported_step(out: Where) -> int:
    """The step that `out`/export was made at; -1 where there is none."""
    story = (Place(out) / EXPORT / STORY).read()
    return json.loads(story)["step"] if story else -1
