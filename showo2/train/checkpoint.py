"""Checkpoints: sharded, written in the background, whole or ignored; in a folder, or at a URL without a detour.

    RUN/checkpoints/step_00000100/   torch.distributed.checkpoint's files, facts.json, and last of all COMMITTED
COMMITTED lists every file with its size and hash. A folder without it was cut off and does not count; one whose files
differ from it is damaged and passed over. Any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import StorageMeta

from showo2.store import Digest, Place, Where
from showo2.train.parallel import Workers

# One process needs no process group, and torch says so at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

MARKER = "COMMITTED"
FACTS = "facts.json"
METADATA = ".metadata"  # torch's
State = dict[str, dict[str, Tensor]]


class Checkpoints:
    """The checkpoints of one run; every rank calls every method.

    before_commit: called by the first rank when all files of a checkpoint are written, and it does not count yet.
    """

    def __init__(self, folder: Where, workers: Workers, keep: int,
                 before_commit: Callable[[], None] = lambda: None):
        self.folder, self.workers, self.keep, self.before_commit = Place(folder), workers, keep, before_commit
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
        """Copy `state` and write it in the background; waits for the save before it."""
        self.wait()
        copy = {part: {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
                for part, tensors in state.items()}
        target = self.folder / f"step_{step:08d}"
        if self.workers.first:
            target.remove()
            (target / FACTS).write(json.dumps(facts).encode())
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

    def _write(self, target: Place, state: State) -> None:
        try:
            mine = self._write_files(target, state)
            if self.workers.first:
                mine[FACTS] = (target / FACTS).digest()
            files = {name: digest for part in self.workers.gather(mine, side=True) for name, digest in part.items()}
            if self.workers.first:
                self.before_commit()
                (target / MARKER).write(json.dumps(files, indent=1).encode())
                self._drop_old(step_of(target.name))
        except BaseException as error:  # noqa: BLE001 (`wait` raises it; torch's own is no Exception)
            self._error = error

    def _write_files(self, target: Place, state: State) -> dict[str, Digest]:
        """Write this rank's part of `state`; name and digest of each file."""
        remote = _Remote()
        writer = _RemoteWriter(target, remote) if target.remote else FileSystemWriter(target.path)
        dcp.save(state, storage_writer=writer, process_group=self.workers.side, no_dist=self.workers.world == 1)
        if target.remote:
            return remote.written
        names = [name for name in target.names() if name.startswith(f"__{self.workers.rank}_")]
        return {name: (target / name).digest() for name in [*names, *([METADATA] if self.workers.first else [])]}

    def _drop_old(self, newest: int) -> None:
        whole = committed(self.folder)
        for folder in whole[self.keep:]:
            (folder / MARKER).remove()
            folder.remove()
        # What a save that was killed has left behind.
        for name in {*_folders(self.folder)} - {folder.name for folder in whole}:
            if step_of(name) < newest:
                (self.folder / name).remove()

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
            _load(folder, reader, state, alone=self.workers.world == 1)
            return json.loads((folder / FACTS).read() or b"")
        return None

    def _damage(self, folder: Place) -> list[str]:
        """What is wrong with this rank's share of the folder's files."""
        try:
            files = json.loads((folder / MARKER).read() or b"")
        except ValueError:
            return [f"{MARKER} is unreadable"]
        wrong = []
        for name in sorted(files)[self.workers.rank::self.workers.world]:
            if not (folder / name).exists():
                wrong.append(f"{name} is missing")
            elif (folder / name).digest() != files[name]:
                wrong.append(f"{name} is not what was written")
        return wrong


def committed(folder: Where) -> list[Place]:
    """The checkpoints under `folder` that have a commit marker, newest first."""
    place = Place(folder)
    names = sorted(_folders(place), key=step_of, reverse=True)
    return [place / name for name in names if (place / name / MARKER).exists()]


def newest_step(folder: Where) -> int:
    """The step of the newest checkpoint under `folder` that has a commit marker; 0 where there is none."""
    return step_of(found[0].name) if (found := committed(folder)) else 0


def step_of(name: str) -> int:
    """The step of a checkpoint's folder, from its name."""
    return int(name.removeprefix("step_"))


def _folders(place: Place) -> list[str]:
    return [name for name in place.names() if re.fullmatch(r"step_\d{8,}", name)]


def read_tensors(folder: Place, parts: tuple[str, ...]) -> State:
    """Whole tensors of some parts of a checkpoint's state, by part and name, in this process alone.

    Raises OSError where files are missing or damaged.
    """
    reader = _Reader(folder)
    state: State = {part: {} for part in parts}
    for key, meta in reader.read_metadata().state_dict_metadata.items():
        part, _, name = key.partition(".")
        if part in parts and isinstance(meta, TensorStorageMetadata):
            state[part][name] = torch.empty(meta.size, dtype=meta.properties.dtype)
    _load(folder, reader, state, alone=True)
    return state


def _load(folder: Place, reader: FileSystemReader, state: State, alone: bool) -> None:
    try:
        dcp.load(state, storage_reader=reader, no_dist=alone)
    except CheckpointException as error:  # A BaseException, which nobody above expects.
        raise OSError(f"{folder} cannot be read: {error}") from error


class _Reader(FileSystemReader):
    """The stock reader unpickles `.metadata` without limits; this one admits its few classes only.

    From a store each tensor comes in one request: torch reads a file here and there.
    """

    def __init__(self, folder: Place):
        super().__init__(folder.where)
        self._folder = folder
        if folder.remote:
            self.fs, self.path = _Remote(), folder.where  # type: ignore[assignment]

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _Unpickler(io.BytesIO((self._folder / METADATA).read() or b"")).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        if isinstance(file, Place):
            return io.BytesIO(file.read(sinfo.offset, sinfo.offset + sinfo.length) or b"")
        return super()._slice_file(file, sinfo)


class _RemoteWriter(FileSystemWriter):
    def __init__(self, folder: Place, remote: _Remote):
        super().__init__(folder.where, sync_files=False)
        self.fs, self.path = remote, folder.where  # type: ignore[assignment]


class _Remote(FileSystemBase):
    """What torch asks of a file system, from a store; a file that is opened for reading is its `Place`.

    written: name and digest of each file that was written.
    """

    def __init__(self) -> None:
        self.written: dict[str, Digest] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        place = Place(path)
        if mode == "rb":
            yield place
            return
        with place.upload() as stream:
            yield stream
        self.written[place.name] = stream.digest

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        return path

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        pass  # A store has none.

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        old, new = Place(path), Place(new_path)  # `.metadata`, and small
        new.write(old.read() or b"")
        old.remove()
        self.written[new.name] = self.written.pop(old.name)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return Place(checkpoint_id).remote

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return Place(path).exists()

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        Place(path).remove()


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


def _check_fit(folder: Place, reader: FileSystemReader, state: State) -> None:
    saved = {name: tuple(getattr(meta, "size", ()))
             for name, meta in reader.read_metadata().state_dict_metadata.items()}
    wanted = {f"{part}.{name}": tuple(t.shape) for part, tensors in state.items() for name, t in tensors.items()}
    wrong = sorted(name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name))
    if wrong:
        raise ValueError(f"{folder} holds another model or another set of trained parameters ({len(wrong)} tensors "
                         f"differ, first {wrong[0]}); give this recipe an --out of its own")
