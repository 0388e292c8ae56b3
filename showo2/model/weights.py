"""Weight files: whole or in shards, safetensors or torch's own, from a folder or the Hub.

`.bin`, `.pt` and `.pth` files are read with `weights_only=True`: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from showo2.store import fetched
from showo2.tiny import resolve

# Shards of the released checkpoints are `pytorch_model-*.bin`, but diffusers named their index.
_RELEASED_INDEX = "diffusion_pytorch_model.bin.index.json"
_INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json",
            "pytorch_model.bin.index.json", _RELEASED_INDEX)
_WHOLE = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin",
          "diffusion_pytorch_model.bin")


def locate(spec: str | Path, revision: str | None = None) -> Path:
    """The local file or folder that a path, a URL, a Hub id (at `revision`) or a `tiny:` name stands for."""
    path = Path(resolve(fetched(spec)))
    if path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(spec)) and not str(spec).startswith("."):
        wanted = ["*.json", "*.bin", "*.safetensors", "*.txt", "*.jinja"]
        return Path(snapshot_download(str(spec), revision=revision, allow_patterns=wanted))
    raise FileNotFoundError(f"{spec}: no such file or folder, and not a Hub id (owner/name)")


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weights file, or of a folder's weights file or shards, on the CPU as stored."""
    if path.is_file():
        return _load(path)
    state: dict[str, Tensor] = {}
    for file in _files(path):
        state |= _load(file)
    return state


def write(state: dict[str, Tensor], folder: Path, max_shard_size: int | str) -> None:
    """`model.safetensors`, or shards of it and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})


def write_released(state: dict[str, Tensor], folder: Path, max_shard_size: int | str) -> None:
    """`pytorch_model.bin`, or shards of it and their index, named as in the released checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RELEASED_INDEX).unlink(missing_ok=True)
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size, safe_serialization=False)
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        index.rename(folder / _RELEASED_INDEX)


def _load(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    # Only torch's newer format can be mapped instead of read.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _files(folder: Path) -> list[Path]:
    for index in (folder / name for name in _INDEXES):
        if index.is_file():
            return _shards(index)
    for name in _WHOLE:
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(f"{folder} holds no weights: expected one of {', '.join(_WHOLE)}, or shards and an index")


def _shards(index: Path) -> list[Path]:
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names {outside[0]}: shards lie beside their index, nowhere else")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index} names {len(missing)} shards that are not there: {missing[:3]}")
    return [index.parent / name for name in names]
