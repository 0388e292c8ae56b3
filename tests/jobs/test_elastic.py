"""What the first worker is asked for while it trains (with Ray's real comings and goings: benchmarks.drain)."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2.api.preemption import PreemptionInfo

from jobs._elastic import requests, save
from showo2.store import Place
from showo2.train.checkpoint import newest_step
from showo2.train.trainer import Trainer
from tests.train.small import small_dataset, small_parts, small_recipe


@pytest.mark.timeout(60)
def test_a_checkpoint_that_is_asked_for_is_there_when_the_asker_goes_on(tmp_path):
    data, parts = small_dataset(tmp_path / "data"), small_parts(tmp_path / "parts")
    recipe = small_recipe(parts, steps=400, checkpoint_every=400)
    saved = []

    def ask() -> None:
        checkpoints = Place(tmp_path / "run") / "checkpoints"
        save(checkpoints, training=lambda: True)
        saved.append(newest_step(checkpoints))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        run = Trainer(recipe, (data,), tmp_path / "run", stop=asked.done, save_now=requests(PreemptionContext()))
        assert run.run() == "stopped"
        asked.result()
    assert 0 < saved[0] < 400


def test_of_a_notice_each_half_of_what_is_left_asks_again(monkeypatch):
    context = PreemptionContext()
    ask = requests(context)
    assert not ask()
    for end in (120, 250):
        context.preemption_info = PreemptionInfo(deadline_ms=1000 * end, preempted_node_to_ranks={"node": [1]})
        asked = []
        for tenth in range(10 * (end - 120), 10 * end + 50):
            monkeypatch.setattr(time, "time", lambda tenth=tenth: tenth / 10)
            if ask():
                asked.append(end - tenth / 10)
        assert asked == pytest.approx([120, 60, 30, 15, 7.5, 3.7, 1.8], abs=0.06)


@pytest.mark.parametrize("deadline", [None, 5])
def test_a_notice_without_an_end_or_past_it_asks_once(deadline):
    context = PreemptionContext()
    context.preemption_info = PreemptionInfo(deadline_ms=deadline, preempted_node_to_ranks={"node": [1]})
    ask = requests(context)
    assert [ask(), ask()] == [True, False]


@pytest.mark.timeout(20)
def test_nobody_waits_for_a_checkpoint_of_a_run_that_has_ended(tmp_path):
    save(Place(tmp_path) / "checkpoints", training=lambda: False)
    assert requests(PreemptionContext())()
    assert not requests(PreemptionContext())()
