"""Checkpoints: sharded, written in the background, whole or ignored.

    RUN/checkpoints/step_00000100/   torch.distributed.checkpoint's files, facts.json, and last of all COMMITTED
COMMITTED lists every file with its size and hash. A folder without it was cut off and does not count; one whose files
differ from it is damaged and passed over. Any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import StorageMeta

from showo2.train.parallel import Workers

# One process needs no process group, and torch says so at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

MARKER = "COMMITTED"
FACTS = "facts.json"
State = dict[str, dict[str, Tensor]]


class Checkpoints:
    """The checkpoints of one run; every rank calls every method."""

    def __init__(self, folder: Path, workers: Workers, keep: int):
        self.folder, self.workers, self.keep = folder, workers, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
        """Copy `state` and write it in the background; waits for the save before it."""
        self.wait()
        copy = {part: {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
                for part, tensors in state.items()}
        target = self.folder / f"step_{step:08d}"
        if self.workers.first:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            (target / FACTS).write_text(json.dumps(facts))
        self.workers.barrier()
        self._thread = threading.Thread(target=self._write, args=(target, copy), name=f"save {target.name}",
                                        daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return once the last save is committed; raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise RuntimeError(f"a checkpoint could not be written under {self.folder}") from self._error

    def _write(self, target: Path, state: State) -> None:
        try:
            dcp.save(state, storage_writer=FileSystemWriter(target), process_group=self.workers.side,
                     no_dist=self.workers.world == 1)
            mine = {file.name: _digest(file) for file in target.glob(f"__{self.workers.rank}_*")}
            if self.workers.first:
                mine |= {name: _digest(target / name) for name in (FACTS, ".metadata")}
            files = {name: digest for part in self.workers.gather(mine, side=True) for name, digest in part.items()}
            if self.workers.first:
                _publish(target / MARKER, json.dumps(files, indent=1))
                self._drop_old()
        except Exception as error:  # noqa: BLE001 (`wait` raises it)
            self._error = error

    def _drop_old(self) -> None:
        for folder in committed(self.folder)[self.keep:]:
            (folder / MARKER).unlink()
            shutil.rmtree(folder)

    def load_newest(self, state: State) -> dict[str, Any] | None:
        """Fill `state` in place from the newest intact checkpoint; its facts, or None where there is none.

        Warns of each damaged checkpoint that is passed over; raises ValueError where tensors do not fit.
        """
        for folder in self.workers.gather(committed(self.folder))[0]:
            damage = [d for part in self.workers.gather(self._damage(folder)) for d in part]
            if damage:
                if self.workers.first:
                    warnings.warn(f"{folder} is damaged and passed over: {'; '.join(damage[:3])}", stacklevel=2)
                continue
            reader = _Reader(folder)
            _check_fit(folder, reader, state)
            dcp.load(state, storage_reader=reader, no_dist=self.workers.world == 1)
            return json.loads((folder / FACTS).read_text())
        return None

    def _damage(self, folder: Path) -> list[str]:
        """What is wrong with this rank's share of the folder's files."""
        try:
            files = json.loads((folder / MARKER).read_text())
        except ValueError:
            return [f"{MARKER} is unreadable"]
        wrong = []
        for name in sorted(files)[self.workers.rank::self.workers.world]:
            if not (folder / name).is_file():
                wrong.append(f"{name} is missing")
            elif _digest(folder / name) != files[name]:
                wrong.append(f"{name} is not what was written")
        return wrong


def committed(folder: Path) -> list[Path]:
    """The checkpoints under `folder` that have a commit marker, newest first."""
    folders = [f for f in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", f.name)]
    return sorted((f for f in folders if (f / MARKER).is_file()), key=lambda f: int(f.name[5:]), reverse=True)


def read_tensors(folder: Path, parts: tuple[str, ...]) -> State:
    """Whole tensors of some parts of a checkpoint's state, by part and name, in this process alone."""
    reader = _Reader(folder)
    state: State = {part: {} for part in parts}
    for key, meta in reader.read_metadata().state_dict_metadata.items():
        part, _, name = key.partition(".")
        if part in parts and isinstance(meta, TensorStorageMetadata):
            state[part][name] = torch.empty(meta.size, dtype=meta.properties.dtype)
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


class _Reader(FileSystemReader):
    """The stock reader unpickles `.metadata` without limits; this one admits its few classes only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem",
                "torch.distributed.checkpoint.storage")
    _NAMES = (("torch", "Size"), ("torch", "memory_format"), ("torch.serialization", "_get_layout"),
              ("torch._utils", "_rebuild_layout"), ("pathlib", "PosixPath"), ("pathlib", "Path"))

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if module in self._MODULES and "." not in name or (module, name) in self._NAMES or dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata names {module}.{name}, which no checkpoint of ours holds")


def _check_fit(folder: Path, reader: FileSystemReader, state: State) -> None:
    saved = {name: tuple(getattr(meta, "size", ()))
             for name, meta in reader.read_metadata().state_dict_metadata.items()}
    wanted = {f"{part}.{name}": tuple(t.shape) for part, tensors in state.items() for name, t in tensors.items()}
    wrong = sorted(name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name))
    if wrong:
        raise ValueError(f"{folder} holds another model or another set of trained parameters ({len(wrong)} tensors "
                         f"differ, first {wrong[0]}); give this recipe an --out of its own")


def _digest(file: Path) -> list[int | str]:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return [file.stat().st_size, digest.hexdigest()]


def _publish(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
