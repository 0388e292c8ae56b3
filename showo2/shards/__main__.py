"""`python -m showo2.shards inspect|verify|show PATH`: what shards hold, are they whole, how they look.

PATH is a dataset folder or a manifest, local or s3://, or one shard's latents file.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import track

from showo2.movies import CLIP_RATE, mp4
from showo2.shards import DamagedRow, Manifest, ShardError, ShardReader
from showo2.shards.remote import is_remote

_console = Console(soft_wrap=True)
Path = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class Inspect:
    """Print counts and schema."""

    path: Path


@dataclass(frozen=True)
class Verify:
    """Read every row and check its checksums; exit status 1 if any is damaged."""

    path: Path


@dataclass(frozen=True)
class Show:
    """Decode some rows to PNG or MP4 and print their texts; rows of text alone are only printed.

    rows: numbers within the shard (within the first shard of a dataset). vae: the VAE that made the latents.
    """

    path: Path
    out: str
    rows: tuple[int, ...] = (0, 1, 2, 3)
    vae: str = "tiny:vae"


def readers(path: str) -> list[ShardReader]:
    """The readers of a dataset, a manifest or one latents file (with the sidecars its manifest names)."""
    if is_remote(path) or not path.endswith(".arrow"):
        return [reader for _, reader in Manifest.load(path).readers()]
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    for root in (folder, os.path.dirname(folder)):
        if os.path.isfile(os.path.join(root, "manifest.json")):
            for shard, reader in Manifest.load(root).readers():
                if os.path.join(root, shard.path) == path:
                    return [reader]
    return [ShardReader(path)]


def inspect(path: str) -> None:
    """Print what `path` holds."""
    if not path.endswith(".arrow"):
        manifest = Manifest.load(path)
        _console.print(f"dataset {manifest.name}: {manifest.rows} rows in {len(manifest.shards)} shards, "
                       f"hash {manifest.hash}")
        for name, rows in manifest.totals().items():
            _console.print(f"  {name}: {rows} rows")
    for reader in readers(path):
        _console.print(f"{reader.path}: {reader.rows} rows of {reader.schema.row_bytes} bytes")
    for name, value in asdict(reader.schema).items():
        _console.print(f"  {name}: {value}")


def verify(path: str) -> int:
    """Check every row of `path`; prints each damaged one and returns how many there are."""
    damaged = rows = 0
    for reader in track(readers(path), "verify", console=Console(stderr=True)):
        try:
            for i in range(reader.rows):
                try:
                    if reader.text_path is None:
                        reader.latents(i)
                    else:
                        reader.read(i, teacher=reader.teacher_path is not None)
                except DamagedRow as error:
                    damaged += 1
                    _console.print(f"damaged: {error}")
            rows += reader.rows
        except ShardError as error:
            damaged += 1
            _console.print(f"damaged: {error}")
    _console.print(f"{rows} rows read, {damaged} damaged")
    return damaged


def show(options: Show) -> None:
    """Decode the rows asked for into `out/UID.png`."""
    from showo2.vae import WanVAE, to_image

    reader = readers(options.path)[0]
    if reader.schema.kind == "text":
        for i in options.rows:
            text = reader.text(i)
            _console.print(f"{text.uid}  {text.text or text.messages}")
        return
    vae = WanVAE.from_pretrained(options.vae)
    if vae.weights_hash != reader.schema.vae:
        raise ShardError(f"{reader.path} was encoded by another VAE than {options.vae}; name it with --vae")
    os.makedirs(options.out, exist_ok=True)
    for i in options.rows:
        row = reader.read(i)
        # The frames of a document are pictures of their own.
        latents = row.latents[None] if reader.schema.timed else row.latents.transpose(0, 1)[:, :, None]
        with torch.inference_mode():
            pixels = vae.decode(latents.float())
        frames = [to_image(frame) for clip in pixels for frame in clip.transpose(0, 1)]
        stem = os.path.join(options.out, row.uid)
        paths = _write_clip(stem, frames) if row.times else _write_pictures(stem, frames)
        _console.print(f"{' '.join(paths)}  {row.text.text or row.text.messages}")


def _write_pictures(stem: str, pictures: list[Image.Image]) -> list[str]:
    paths = [f"{stem}.png"] if len(pictures) == 1 else [f"{stem}-{n}.png" for n in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return paths


def _write_clip(stem: str, frames: list[Image.Image]) -> list[str]:
    path = f"{stem}.mp4"
    with open(path, "wb") as file:
        file.write(mp4(frames, CLIP_RATE))
    return [path]


def main() -> int:
    """The command line."""
    options = tyro.cli(Inspect | Verify | Show, description=__doc__)
    try:
        if isinstance(options, Show):
            show(options)
        elif isinstance(options, Verify):
            return 1 if verify(options.path) else 0
        else:
            inspect(options.path)
    except ShardError as error:
        _console.print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
