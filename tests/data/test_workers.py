"""Worker processes hand over what a plain loop would make, in memory that they use again."""

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import torch

from showo2.data import workers
from showo2.data.workers import by_workers

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)


@dataclass(frozen=True)
class Item:
    """What a batch is made of: tensors at any depth, and whatever else pickles."""

    name: str
    tensors: dict[str, list[torch.Tensor]]


class Items:
    """Items that their index says all about; some fail."""

    def __getitem__(self, index):
        if index == -1:
            raise FileNotFoundError("no such shard")
        if index == -2:
            raise Unspeakable("shard", 3)
        if index == -3:
            os.kill(os.getpid(), signal.SIGKILL)
        numbers = (torch.arange(24) + index).view(4, 6)
        tensors = {str(dtype): [numbers.to(dtype), numbers.to(dtype).T, numbers[0, 0].to(dtype)] for dtype in DTYPES}
        return Item(f"item {index}", tensors | {"empty": [torch.empty(0, 3)]})


class Unspeakable(Exception):
    """An error that does not come back from a pickle."""

    def __init__(self, path, row):
        super().__init__(f"{path} is damaged in row {row}")


def same(one, other):
    assert one.name == other.name and list(one.tensors) == list(other.tensors)
    for a, b in zip(one.tensors.values(), other.tensors.values(), strict=True):
        assert all(x.dtype == y.dtype and x.equal(y) for x, y in zip(a, b, strict=True))


def test_items_come_in_order_and_whole_however_many_are_held():
    held = list(by_workers(Items(), range(30), 2))
    for index, item in enumerate(held):
        same(item, Items()[index])


def mapping(tensor):
    """The file whose memory a tensor lies in (Linux)."""
    with open("/proc/self/maps") as file:
        for line in file:
            span, *_, name = line.split(maxsplit=5)
            start, end = (int(place, 16) for place in span.split("-"))
            if start <= tensor.data_ptr() < end:
                return name
    return None


def test_memory_serves_again_once_nobody_holds_a_tensor_in_it():
    made = by_workers(Items(), itertools.count(), 1)
    first = next(made)
    kept = first.tensors[str(torch.float32)][0]
    del first
    places = set()
    for index, item in zip(range(1, 40), made, strict=False):
        same(item, Items()[index])
        places.add(item.tensors[str(torch.float32)][0].data_ptr())
        assert "memfd:showo2-items" in mapping(item.tensors[str(torch.float32)][0])
    assert len(places) <= 4 and kept.data_ptr() not in places
    assert kept.equal(Items()[0].tensors[str(torch.float32)][0])
    made.close()


@pytest.mark.parametrize(("index", "error", "message"), [
    (-1, FileNotFoundError, "no such shard"), (-2, RuntimeError, "Unspeakable: shard is damaged in row 3"),
    (-3, RuntimeError, "a reading process was ended from outside .status -9")])
def test_what_goes_wrong_there_is_raised_here(index, error, message):
    made = by_workers(Items(), [0, 1, index, 2], 2)
    same(next(made), Items()[0])
    same(next(made), Items()[1])
    with pytest.raises(error, match=message) as raised:
        next(made)
    if index > -3:
        assert "in __getitem__" in raised.value.__notes__[0]
    assert next(made, None) is None


def test_what_a_slot_cannot_hold_travels_with_the_rest():
    slot = np.zeros(1000, np.uint8)
    item = Items()[5]
    same(workers._Unpickler(workers._pickled(item, slot), slot).load(), item)
    assert slot.any()


CONSUMER = """
import itertools, time
from showo2.data.workers import by_workers
from tests.data.test_workers import Items
if __name__ == "__main__":
    for item in by_workers(Items(), itertools.count(), 2):
        print(item.name, flush=True)
        time.sleep(0.1)
"""


def test_workers_end_with_a_consumer_that_is_killed(tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    process = subprocess.Popen([sys.executable, tmp_path / "consumer.py"], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert [process.stdout.readline().strip() for _ in range(4)] == [f"item {n}" for n in range(4)]
    children = psutil.Process(process.pid).children()
    assert len(children) >= 2
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, 20)[1]


def test_closing_ends_the_processes():
    before = psutil.Process().children()
    made = by_workers(Items(), itertools.count(), 2)
    next(made)
    readers = [child for child in psutil.Process().children() if child not in before and "spawn_main" in str(child.cmdline())]
    assert len(readers) == 2
    made.close()
    assert not any(reader.is_running() for reader in readers)
