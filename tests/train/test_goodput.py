"""Where the time went, over all attempts; and which rank is slow."""

import json
import time

import pytest
import torch
from torch import nn

from showo2.train.goodput import FILE, Goodput
from showo2.train.stopwatch import Stopwatch, pace


def test_lost_time_is_told_by_cause(tmp_path):
    goodput = Goodput(tmp_path)
    goodput.first -= 100
    goodput.lost["data"] += 10
    goodput.step(1, 5.0, finite=True)
    goodput.step(2, 20.0, finite=False)
    told = goodput.write()
    assert told["goodput"] == pytest.approx(0.7, abs=0.01)
    assert (told["lost_data_s"], told["lost_skipped_s"]) == (10, 20) and "lost_redo_s" not in told


def test_a_second_attempt_counts_what_it_does_again(tmp_path):
    first = Goodput(tmp_path)
    for number in (1, 2, 3):
        first.step(number, 1.0, finite=True)
    first.write()
    facts = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**facts, "first": facts["first"] - 100, "last": facts["last"] - 30}))
    second = Goodput(tmp_path)
    for number in (3, 4):
        second.step(number, 2.0, finite=True)
    second.started()
    told = second.write()
    assert told["lost_down_s"] == pytest.approx(30, abs=1) and told["lost_redo_s"] == 2
    assert told["goodput"] == pytest.approx(0.68, abs=0.02)


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return x


def test_the_rank_that_computes_longest_is_named():
    seconds = []
    for units in ([nn.Identity()], [nn.Identity(), Slow()]):
        watch = Stopwatch(units, torch.device("cpu"))
        for _ in range(3):
            for unit in units:
                unit(torch.zeros(1))
            watch.step()
        seconds.append(watch.read())
        assert watch.read() == 0
    told = pace(seconds)
    assert told["slowest_rank"] == 1
    assert 0.02 <= told["compute_s_slowest"] == seconds[1] < 0.06, "seconds a step, not of all"
