"""Two real processes on gloo: the same samples and losses as one, and nothing hangs where a rank has no work."""

import json
import os
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from showo2.data.loader import Batches
from showo2.data.mixture import Entry
from showo2.train.losses import Unified
from showo2.train.optimizer import local
from showo2.train.parallel import Workers, blocks, parallelize, replicas
from showo2.train.recipe import Group, Parallel
from showo2.train.trainer import Trainer
from tests.train.small import ranks, small_recipe, story


def train(workers, recipe, data, out, kill_at=None, stop_at=None, kill_in_save=None):
    """Run, noting each step's samples; the last rank is killed in a step or as a save begins, or asked to stop."""
    asked, last = iter(range(1000)), workers.rank == workers.world - 1

    def saving(facts):
        if last and facts["step"] == kill_in_save:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = Trainer(recipe, data, out, workers=workers, stop=lambda: last and next(asked) == stop_at,
                      on_checkpoint=saving)
    real = trainer._count

    def count(batch):
        if workers.rank == 1 and trainer.done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(out / f"samples-{trainer.done}-{workers.rank}of{workers.world}.json", "w") as file:
            json.dump(batch.uids, file)
        return real(batch)

    trainer._count = count
    trainer.run()


def samples(out, step):
    return sorted(uid for file in out.glob(f"samples-{step}-*") for uid in json.loads(file.read_text()))


def assert_close(run, other):
    assert len(story(run)) == len(story(other)) > 0
    for mine, theirs in zip(story(run), story(other), strict=True):
        # Adam's first steps make whole steps of a gradient's last bits where it is near zero; its norm shows that first.
        assert mine.pop("grad_norm") == pytest.approx(theirs.pop("grad_norm"), rel=1e-4)
        assert mine == pytest.approx(theirs, rel=1e-5)


def weights(run):
    return (run / "export" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data, parts):
    out = tmp_path_factory.mktemp("alone")
    train(Workers(), small_recipe(parts), data, out)
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory, data, parts):
    out = tmp_path_factory.mktemp("both")
    assert ranks(2, train, small_recipe(parts), data, out) == [0, 0]
    return out


def test_two_workers_do_what_one_does(alone, both):
    assert_close(both, alone)
    for step in range(6):
        assert samples(both, step) == samples(alone, step)
        assert len(samples(both, step)) == 8


@pytest.mark.parametrize("harm", [{"kill_at": 5}, {"kill_in_save": 4}, {"stop_at": 2}], ids=str)
def test_one_of_two_workers_killed_or_stopped_and_run_again_is_bit_equal(harm, both, tmp_path, data, parts):
    recipe = small_recipe(parts)
    ended = ranks(2, partial(train, **harm), recipe, data, tmp_path)
    assert ended == [0, 0] if "stop_at" in harm else -signal.SIGKILL in ended
    assert not (tmp_path / "export").exists()
    assert ranks(2, train, recipe, data, tmp_path) == [0, 0]
    assert story(tmp_path) == story(both)
    assert weights(tmp_path) == weights(both)


def test_another_number_of_workers_goes_on_with_the_same_samples(alone, tmp_path, data, parts):
    recipe = small_recipe(parts)
    assert ranks(2, train, recipe, data, tmp_path, None, 1) == [0, 0]
    assert len(story(tmp_path)) == 2
    train(Workers(), recipe, data, tmp_path, stop_at=1)
    assert len(story(tmp_path)) == 4
    assert ranks(3, train, recipe, data, tmp_path) == [0, 0, 0]
    assert_close(tmp_path, alone)
    for step in range(6):
        assert samples(tmp_path, step) == samples(alone, step)


def test_accumulating_is_the_same_update(alone, tmp_path, data, parts):
    Trainer(small_recipe(parts, accumulate=2), data, tmp_path).run()
    assert_close(tmp_path, alone)


def test_worker_without_any_sample_neither_hangs_nor_spoils_the_loss(tmp_path, data, parts):
    recipe = small_recipe(parts, mixture=(Entry("generate", "generate", "pair", 1),), steps=2, checkpoint_every=9)
    assert ranks(2, train, recipe, data, tmp_path / "two") == [0, 0]
    Trainer(recipe, data, tmp_path / "one").run()
    assert_close(tmp_path / "two", tmp_path / "one")


def test_distillation_shards_the_semantic_layers_alone(tmp_path, data, parts):
    recipe = small_recipe(parts, mixture=(Entry("p", "distill", "pair", 3),), steps=2,
                          groups=(Group(("semantic.",), 1e-3),))
    assert ranks(2, train, recipe, data, tmp_path / "two") == [0, 0]
    Trainer(recipe, data, tmp_path / "one").run()
    assert_close(tmp_path / "two", tmp_path / "one")


def gradients(workers, recipe, data, out, plan):
    """Squared gradients of each parameter, every block a sharded unit of its own, and the step's loss."""
    trainer = Trainer(recipe, data, out / f"{workers.rank}of{workers.world}")
    model = trainer.model
    batches = Batches(trainer._stream(), trainer.manifests, trainer.tokenizer, workers.rank, workers.world, 0, None)
    # Graphs are captured and differentiated as ever; making machine code of them would take a minute.
    torch.compile = partial(torch.compile, backend="aot_eager")
    parallelize(model, blocks(model), workers, plan, smallest=0)
    sums = Unified(model, 0.3).sums(batches[0].micro[0])
    sums.sum().backward()
    norms = torch.stack([local(p.grad).double().square().sum() for p in model.parameters()])
    found = workers.sum(torch.cat([sums.detach().double(), norms / replicas(workers, plan)]))
    if workers.first:
        torch.save(found, out / "found.pt")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data, parts):
    out = tmp_path_factory.mktemp("plain")
    assert ranks(1, gradients, small_recipe(parts), data, out, Parallel()) == [0]
    return torch.load(out / "found.pt")


@pytest.mark.parametrize(("world", "plan"), [
    (2, Parallel()),
    (2, Parallel(shard=1, recompute="cheap")),
    (4, Parallel(shard=2, recompute="blocks")),
    (1, Parallel(compile=True)),
    (1, Parallel(precision="bf16", recompute="cheap")),
])  # fmt: skip
def test_every_plan_gives_the_same_gradients(world, plan, plain, tmp_path, data, parts):
    recipe = small_recipe(parts)
    assert ranks(world, gradients, recipe, data, tmp_path, plan) == [0] * world
    rounding = {"rtol": 0.1, "atol": 1e-3} if plan.precision == "bf16" else {"rtol": 1e-4, "atol": 1e-9}
    found = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(found, plain, **rounding)
    rounded = (found - plain).abs() > 1e-3 * plain.abs() + 1e-6
    assert bool(rounded.any()) == (plan.precision == "bf16")


def test_bf16_trains_fp32_masters_and_resumes(tmp_path, data, parts):
    recipe = small_recipe(parts, parallel=Parallel(precision="bf16"))
    assert ranks(1, train, recipe, data, tmp_path, None, 2) == [0]
    assert ranks(1, train, recipe, data, tmp_path) == [0]
    assert [line["step"] for line in story(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "export" / "model.safetensors").values())


def test_workers_that_are_no_whole_replicas_are_an_error():
    with pytest.raises(ValueError, match="6 workers do not divide into replicas of parallel.shard=4"):
        replicas(Workers(world=6), Parallel(shard=4))
