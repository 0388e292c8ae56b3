"""Items made by worker processes, in memory that both sides share and use again.

A DataLoader gives every tensor shared memory of its own, which the kernel clears and maps page by page, and whose
descriptor travels through a socket: for latents that takes longer than to read them. Here a worker has one file in
memory (Linux's memfd: the size of /dev/shm does not matter) with a few slots. The tensors of an item lie in one slot,
and the slot serves another item once nobody holds any of them.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import pickle
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Items that a worker may be ahead, and slots: one more is being used, one more is about to be dropped.
AHEAD = 2
_SLOTS = AHEAD + 2
# Addresses of a slot; memory is taken by what was once written.
_SLOT_BYTES = 1 << 32
_ALIGN = 64

Item_co = TypeVar("Item_co", covariant=True)
Bytes = NDArray[np.uint8]


class Items(Protocol[Item_co]):
    """What workers make, by index. Must pickle."""

    def __getitem__(self, index: Any) -> Item_co: ...


def by_workers(items: Items[Item_co], indices: Iterable[Any], workers: int) -> Generator[Item_co]:
    """`items[index]` for each of `indices`, in their order, made ahead by `workers` processes in turn.

    Tensors on the CPU come in shared memory, without a copy on this side; whoever holds many items gets copies. Raises
    what `items[index]` raised, with the worker's traceback as a note, and RuntimeError where a worker died.
    """
    team = [_Worker(items) for _ in range(workers)]
    asked: deque[_Worker] = deque()
    try:
        for index, worker in zip(indices, itertools.cycle(team), strict=False):
            worker.ask(index)
            asked.append(worker)
            if len(asked) == workers * AHEAD:
                yield asked.popleft().answer()
        while asked:
            yield asked.popleft().answer()
    finally:
        for worker in team:
            worker.close()


class _Worker:
    """A process, seen from the one that uses what it makes."""

    def __init__(self, items: Items[Any]):
        # Spawned, not forked: by now the trainer has threads and sockets of its own.
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, items), name="reader", daemon=True)
        self._process.start()
        other.close()
        descriptor = os.memfd_create("showo2-items")
        os.ftruncate(descriptor, _SLOTS * _SLOT_BYTES)
        send_handle(self._pipe, descriptor, self._process.pid)
        self._memory = mmap.mmap(descriptor, _SLOTS * _SLOT_BYTES)
        os.close(descriptor)
        self._free = deque(range(_SLOTS))
        self._asked: deque[int | None] = deque()

    def ask(self, index: Any) -> None:
        slot = self._free.popleft() if self._free else None
        self._asked.append(slot)
        try:
            self._pipe.send((index, slot))
        except OSError:
            self._died()

    def answer(self) -> Any:
        """What was asked for first, of all that has not been answered."""
        try:
            told = self._pipe.recv_bytes()
        except (EOFError, OSError):
            self._died()
        slot = self._asked.popleft()
        memory = None
        if slot is not None:
            memory = _slot(self._memory, slot)
            weakref.finalize(memory, self._free.append, slot).atexit = False
        made = _Unpickler(told, memory).load()
        if isinstance(made, _Failed):
            raise made.error()
        return made

    def _died(self) -> None:
        self._process.join()
        raise RuntimeError(f"a reading process was ended from outside (status {self._process.exitcode}; -9 is often the "
                           "kernel's, out of memory); read with fewer of them, or with none") from None

    def close(self) -> None:
        """End the process, whatever it is at: it only reads, and what it keeps on disk survives that."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


@dataclass(frozen=True)
class _Failed:
    """An error in words: as an object it may not come back from a pickle."""

    kind: type[Exception]
    message: str
    traceback: str

    def error(self) -> Exception:
        try:
            error = self.kind(self.message)
        except TypeError:  # It wants more than a message.
            error = RuntimeError(f"{self.kind.__name__}: {self.message}")
        error.add_note(self.traceback)
        return error


def _work(pipe: Connection, items: Items[Any]) -> None:
    # Ctrl-C is for the process that uses the items; when it ends, the pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        memory = mmap.mmap(recv_handle(pipe), _SLOTS * _SLOT_BYTES)
        while True:
            index, slot = pipe.recv()
            pipe.send_bytes(_made(items, index, None if slot is None else _slot(memory, slot)))
    except (EOFError, OSError):
        return


def _made(items: Items[Any], index: Any, memory: Bytes | None) -> bytes:
    try:
        return _pickled(items[index], memory)
    except Exception as error:  # noqa: BLE001 (the consumer raises it)
        return _pickled(_Failed(type(error), str(error), traceback.format_exc()), None)


def _slot(memory: mmap.mmap, slot: int) -> Bytes:
    return np.frombuffer(memory, np.uint8, _SLOT_BYTES, slot * _SLOT_BYTES)


def _pickled(item: Any, memory: Bytes | None) -> bytes:
    file = io.BytesIO()
    _Pickler(file, memory).dump(item)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors go into `memory` (bytes), as far as it reaches, and only their places into the pickle."""

    def __init__(self, file: io.BytesIO, memory: Bytes | None):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._memory, self._end = memory, 0

    def persistent_id(self, thing: Any) -> tuple[int, torch.dtype, torch.Size] | None:
        if type(thing) is not Tensor or self._memory is None or thing.device.type != "cpu":
            return None
        start = -(-self._end // _ALIGN) * _ALIGN
        if start + thing.nbytes > len(self._memory):
            return None
        self._end = start + thing.nbytes
        place = start, thing.dtype, thing.shape
        _at(self._memory, *place).copy_(thing)
        return place


class _Unpickler(pickle.Unpickler):
    """Reads what a `_Pickler` of a worker of ours has sent through its pipe; nothing else ever comes here."""

    def __init__(self, told: bytes, memory: Bytes | None):
        super().__init__(io.BytesIO(told))
        self._memory = memory

    def persistent_load(self, place: tuple[int, torch.dtype, torch.Size]) -> Tensor:
        assert self._memory is not None
        return _at(self._memory, *place)


def _at(memory: Bytes, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.from_numpy(memory[start:start + shape.numel() * dtype.itemsize]).view(dtype).view(shape)
