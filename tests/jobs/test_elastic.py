"""What the first worker is asked for while it trains (with Ray's real comings and goings: benchmarks.drain)."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

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
        save(checkpoints)
        saved.append(newest_step(checkpoints))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        run = Trainer(recipe, (data,), tmp_path / "run", stop=asked.done, save_now=requests(SimpleNamespace(preemption_info=None)))
        assert run.run() == "stopped"
        asked.result()
    assert 0 < saved[0] < 400


def test_a_notice_is_told_once():
    context = SimpleNamespace(preemption_info=None)
    ask = requests(context)
    assert not ask()
    context.preemption_info = SimpleNamespace(deadline_ms=5)
    assert [ask(), ask()] == [True, False]
    context.preemption_info = SimpleNamespace(deadline_ms=9)
    assert [ask(), ask()] == [True, False]
