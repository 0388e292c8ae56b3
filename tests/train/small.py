"""A dataset of random latents and a recipe of random parts: everything a run needs, in a second."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from showo2.data.mixture import Entry
from showo2.model import FlowHeadConfig
from showo2.shards import Manifest, Shard, ShardSchema, TextRow, write_latents, write_teacher, write_text
from showo2.train.meters import METRICS, read
from showo2.train.parallel import join
from showo2.train.recipe import PARTS, Group, ModelParts, Recipe
from tests.generate.checkpoint import byte_tokenizer

BUCKET = (1, 8, 8)
COLOURS = ("red", "green", "blue", "yellow")


def uid_of(source: str, row: int) -> str:
    """The uid of a row of the small dataset."""
    return hashlib.md5(f"{source}/{row}".encode()).hexdigest()


def text_of(source: str, row: int) -> TextRow:
    """The text of a row: a caption, or a question and its answer."""
    colour, uid = COLOURS[row % 4], uid_of(source, row)
    if source != "instruct":
        return TextRow(uid, f"a {colour} circle")
    turns = [{"from": "human", "value": "<image>\nwhat colour?"}, {"from": "gpt", "value": colour}]
    return TextRow(uid, messages=json.dumps(turns))


def write_shard(folder: str | Path, source: str, kind: str, number: int, rows: range,
                bucket: tuple[int, int, int] = BUCKET, text: Callable[[str, int], TextRow] = text_of) -> Shard:
    """One shard with both sidecars; `rows` are numbers within the source."""
    folder = Path(folder)
    schema = ShardSchema(source, kind, bucket, "vae", (0.0,) * 16, (1.0,) * 16, "center")
    times = np.zeros((len(rows), schema.frames), np.float32) if schema.timed else None
    uids = [uid_of(source, row) for row in rows]
    latents = np.random.default_rng([len(source), number]).standard_normal((len(rows), 16, *bucket))
    name = f"{source}-{number}"
    with open(folder / f"{name}.arrow", "wb") as file:
        write_latents(file, schema, uids, latents.astype(np.float16), np.full((len(rows), 2), 512, np.int32),
                      np.zeros((len(rows), 4), np.int32), times)
    with open(folder / f"{name}.text.arrow", "wb") as file:
        write_text(file, schema, [text(source, row) for row in rows])
    with open(folder / f"{name}.teacher.arrow", "wb") as file:
        write_teacher(file, schema, uids, [_jpeg(COLOURS[row % 4]) for row in rows])
    return Shard(f"{name}.arrow", f"{name}.text.arrow", f"{name}.teacher.arrow", source, kind, bucket, len(rows),
                 (folder / f"{name}.arrow").stat().st_size, "0", name)


def small_dataset(folder: Path, shard_rows: int = 24) -> str:
    """Two shards of pairs and one of conversations under `folder`; the path for --data."""
    latents = folder / "latents"
    latents.mkdir(parents=True)
    shards = [write_shard(latents, "web", "pair", i, range(i * shard_rows, (i + 1) * shard_rows)) for i in (0, 1)]
    shards.append(write_shard(latents, "instruct", "conversation", 0, range(shard_rows)))
    (latents / "manifest.json").write_bytes(Manifest("small", tuple(shards)).to_json())
    return str(folder)


def small_parts(folder: Path, width: int = 32) -> ModelParts:
    """A random language model with its tokenizer and a random SigLIP under `folder`."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    llm = Qwen2Config(hidden_size=width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                      intermediate_size=64, vocab_size=tokenizer.vocab_size, tie_word_embeddings=True)
    Qwen2ForCausalLM(llm).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    siglip = SiglipVisionConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
                                image_size=64, patch_size=16)
    SiglipVisionModel(siglip).save_pretrained(folder / "siglip")
    return ModelParts(str(folder / "llm"), str(folder / "siglip"), "nowhere", FlowHeadConfig(32, 2, 4, 2, 8, 64),
                      grid=4, conversation="plain", size=64)


def small_recipe(parts: ModelParts, **changes: object) -> Recipe:
    """All tasks in batches of 8, every parameter trains, every step is logged."""
    recipe = Recipe(
        name="small", summary="", start="parts", model=parts, steps=6, context=96, warmup=2, schedule="cosine",
        mixture=(Entry("generate", "generate", "pair", 4), Entry("caption", "caption", "pair", 2),
                 Entry("converse", "converse", "conversation", 2)),
        groups=(Group(PARTS, 1e-3),), ema=0.9, checkpoint_every=2, log_every=1)
    return replace(recipe, **changes)


def _jpeg(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "JPEG")
    return out.getvalue()


def story(run: Path) -> list[dict[str, float]]:
    """What a run's metrics say of each step, without what the clock said."""
    timed = re.compile(r".*(_s|_per_s|_slowest|_median)|slowest_rank|goodput")
    lines = [{k: v for k, v in line.items() if not timed.fullmatch(k)} for line in read(run / METRICS)]
    return [line for line in lines if "loss" in line]


def ranks(world: int, function: Callable[..., None], *arguments: object) -> list[int]:
    """Run `function(workers, *arguments)` in `world` real processes; their exit codes, negative for a signal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")  # The parent has imported what takes seconds to import.
    processes = [context.Process(target=_rank, args=(rank, world, port, function, arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    _wait(processes)
    return [process.exitcode or 0 for process in processes]


def _rank(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    # A test before may have made threads, which a fork does not copy: what then waits for them waits for ever.
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(join(), *arguments)
    # Past the interpreter's farewell: threads that the fork copied would keep it waiting.
    os._exit(0)


def _wait(processes: list[Any]) -> None:
    """Until all have ended; when one dies, the others are killed, as Ray and torchrun do."""
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
        for process in processes:
            process.join(0.02)
