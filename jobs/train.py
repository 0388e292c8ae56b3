"""Train one stage of the recipe.

python -m jobs.train RECIPE --data DATA --out RUN [--init RUN] [--option value]; --list names the recipes.
python -m jobs.train --through FIRST..LAST --data DATA --out RUNS trains all of them in turn, each in RUNS/RECIPE.

DATA and RUN are folders or URLs (s3://...). Run again, it goes on from the newest checkpoint. Ctrl-C or SIGTERM saves
and exits with 130 or 143. A finished run leaves RUN/export, which `--init`, `jobs.generate` and `jobs.evaluate` take.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Column, Table

from jobs._console import progress, told_plainly
from showo2 import recipes
from showo2.shards import ShardError
from showo2.shards.remote import is_remote
from showo2.store import Place, StoreError
from showo2.train import meters, tracking
from showo2.train.parallel import Workers, join
from showo2.train.recipe import Recipe
from showo2.train.start import check, exported_step
from showo2.train.trainer import Diverged, Trainer

STOP = "stop"
OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Train:
    """One run. Every field of the recipe is an option too."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: tuple[str, ...]
    """dataset folders that jobs.encode filled, or manifests"""
    out: str
    """the run's folder, on storage that every worker sees, or URL"""
    init: str | None = None
    """the run, or the exported model, that this stage goes on from"""
    workers: int = 2
    """Ray Train workers; 0 trains in this process, without Ray"""
    min_workers: int = 0
    """go on with as few as these where nodes are lost, and grow again when they come back; 0: always all"""
    cpus: int = 1
    """cores of a worker"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where the model is trained"""
    track: tyro.conf.UseAppendAction[tuple[tracking.Name, ...]] = ()
    """where metrics go beside TensorBoard: `--track wandb`, `--track mlflow`, or both"""


def train(config: Train) -> str:
    """Run the stage as configured: "finished" or "stopped". Raises ValueError for what the user can mend."""
    data = tuple(_absolute(path) for path in config.data)
    blocklist = config.recipe.blocklist and _absolute(config.recipe.blocklist)
    config = replace(config, out=_absolute(config.out), data=data, recipe=replace(config.recipe, blocklist=blocklist),
                     init=os.path.abspath(config.init) if config.init and os.path.exists(config.init) else config.init)
    check(config.recipe, config.data, config.out, config.init)
    tracking.check(config.track)
    if exported_step(config.out) >= config.recipe.steps:
        return "finished"
    if "RANK" in os.environ:
        return _run_here(config, join(config.device), first=os.environ["RANK"] == "0")
    if config.workers == 0:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
        return _run_here(config, join(config.device), first=True)
    return _run_on_ray(config)


def train_through(config: Train, stages: Sequence[Recipe]) -> str:
    """Train each stage as `train` does, in a folder of its own under `config.out`, from the run before it.

    Stages that are finished are passed over.
    """
    init = config.init
    for number, recipe in enumerate(stages, 1):
        out = str(Place(config.out) / recipe.name)
        print(f"{number}/{len(stages)} {recipe.name}: {recipe.summary}")
        if train(replace(config, recipe=recipe, out=out, init=init)) != "finished":
            return "stopped"
        init = out
    return "finished"


def _run_here(config: Train, workers: Workers, first: bool) -> str:
    """Train in this process, one of `workers`; a signal asks the trainer to stop after its step."""
    asked = threading.Event()
    with _signals(asked.set), _following(config, quiet=not first):
        return _trainer(config, workers, asked.is_set).run()


def _run_on_ray(config: Train) -> str:
    """Train on Ray Train's workers; a signal leaves a note that they find in the run's folder."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    from jobs._elastic import Elastic
    from jobs._ray import connect, is_private

    class Quiet(TorchTrainer):
        """Without the actor that outlives a dead controller: it asks the dashboard whether the controller lives, and
        a private cluster has none (it warns every second, and ends with its driver anyway)."""

        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()
            return [c for c in made if not isinstance(c, PlacementGroupCleanerCallback)]

    connect()
    note, told = Place(config.out) / STOP, Place(config.out) / OUTCOME
    note.remove()
    told.write(json.dumps({"outcome": "failed", "error": ""}).encode())
    number = (config.min_workers, config.workers) if config.min_workers else config.workers
    # On a cluster it matters where workers start; here it would be told between the lines of the progress bar.
    level = "WARNING" if is_private() else "INFO"
    trainer = (Quiet if is_private() else TorchTrainer)(
        _ray_worker, train_loop_config={"config": config},
        scaling_config=ScalingConfig(num_workers=number, use_gpu=config.device == "cuda",
                                     resources_per_worker={"CPU": config.cpus}),
        run_config=RunConfig(name="ray", storage_path=config.out, failure_config=FailureConfig(max_failures=3),
                             callbacks=[Elastic(config.out)], logging_config=LoggingConfig(level)))
    # Ray takes Ctrl-C for itself where `fit` runs in the main thread, and ends the run without a checkpoint.
    with _signals(lambda: note.write(b"")), _following(config), ThreadPoolExecutor(1) as pool:
        pool.submit(trainer.fit).result()
    outcome = json.loads(told.read() or b"")
    if outcome["error"]:
        raise ValueError(outcome["error"])
    return outcome["outcome"]


def _ray_worker(loop: dict[str, Train]) -> None:
    """One worker of Ray Train. What trying again cannot mend is told in the outcome, and ends the run for good."""
    import ray.train
    from ray.train.v2._internal.execution.context import get_train_context

    from jobs._elastic import requests

    # Ray has set it to INFO, at which every report and every file that is written is told.
    logging.getLogger().setLevel(logging.WARNING)
    config = loop["config"]
    torch.set_num_threads(config.cpus)
    workers = join(config.device)
    stop = _noted(Place(config.out) / STOP) if workers.first else lambda: False
    outcome, error = "failed", ""
    try:
        asked = requests(get_train_context().preemption_context) if workers.first else lambda: False
        run = _trainer(config, workers, stop, ray.train.report, asked)
        outcome = run.run()
    except (ValueError, ShardError, Diverged) as caught:
        if workers.world > 1 and isinstance(caught, ShardError):
            raise  # One rank's alone: the others wait for it, and only a restart frees them.
        error = str(caught)
    if workers.first:
        (Place(config.out) / OUTCOME).write(json.dumps({"outcome": outcome, "error": error}).encode())


def _noted(note: Place, every_s: float = 2.0) -> Callable[[], bool]:
    """Whether the note is there. A store answers too slowly to be asked in every step, so a thread does it."""
    if not note.remote:
        return note.exists
    found = threading.Event()

    def look() -> None:
        while not found.wait(every_s):
            with suppress(StoreError):
                if note.exists():
                    found.set()

    threading.Thread(target=look, daemon=True).start()
    return found.is_set


def _trainer(config: Train, workers: Workers, stop: Any, report: Any = lambda facts: None,
             save_now: Callable[[], bool] = lambda: False) -> Trainer:
    transformers.utils.logging.disable_progress_bar()
    made = Trainer(config.recipe, config.data, config.out, config.init, workers, stop, report, save_now,
                   config.track)
    # What lives until the end need not be looked through at every collection of garbage.
    gc.collect()
    gc.freeze()
    return made


@contextmanager
def _signals(ask: Any) -> Iterator[None]:
    """Call `ask` on the first SIGINT or SIGTERM, then leave with 128 + its number; a second one ends at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        print("stopping after this step; once more to stop at once", file=sys.stderr)
        ask()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        print("saved; run the same command again to go on from here", file=sys.stderr)
        raise SystemExit(128 + received[0])


@contextmanager
def _following(config: Train, quiet: bool = False) -> Iterator[None]:
    """Show the metrics file's progress while the body runs: step, loss, steps a second, time left."""
    if quiet:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(config, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(config: Train, done: threading.Event) -> None:
    recipe, tenths = config.recipe, 0
    with progress() as bar:
        task = bar.add_task(recipe.name, total=recipe.steps)
        ended = False
        metrics = Place(config.out) / meters.METRICS
        while not ended:
            ended = done.wait(5 if metrics.remote else 0.5)
            line = None
            with suppress(StoreError):
                line = meters.last(metrics)
            if line is None:
                continue
            step, told = line["step"], f"{recipe.name} loss {line['loss']:.3f}"
            bar.update(task, completed=step, description=told)
            if not bar.console.is_terminal and step * 10 // recipe.steps > tenths:
                tenths = step * 10 // recipe.steps
                bar.console.print(f"{told} step {step}/{recipe.steps} {1 / line['step_s']:.2f} steps/s")


def _absolute(path: str) -> str:
    return path if is_remote(str(path)) else os.path.abspath(path)


def _table() -> Table:
    table = Table(Column("recipe", no_wrap=True), "starts from", "steps", "batch", "what it does")
    for recipe in recipes.RECIPES.values():
        table.add_row(recipe.name, recipe.start, str(recipe.steps), str(recipe.batch), recipe.summary)
    return table


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--list"]:
        return Console().print(_table())
    through = arguments[:1] == ["--through"]
    if not arguments or arguments[0].startswith("-") and not through:
        print(__doc__)
        return Console().print(_table())
    with told_plainly():
        if through:
            del arguments[0]
        stages = _stages(arguments[:1]) if through else [recipes.get(arguments[0])]
        first = stages[0]
        config = tyro.cli(Train, args=arguments[1:], prog=f"python -m jobs.train {first.name}",
                          default=Train(first, tyro.MISSING, tyro.MISSING), description=first.summary)
        if through and config.recipe != first:
            raise ValueError("options of a recipe do not go with --through: each stage has its own")
        try:
            outcome = train_through(config, stages) if through else train(config)
        except (ShardError, Diverged) as error:
            raise ValueError(str(error)) from error
    print(f"{', '.join(stage.name for stage in stages)} {outcome}: {config.out}")


def _stages(through: list[str]) -> list[Recipe]:
    first, dots, last = "".join(through).partition("..")
    if not dots:
        raise ValueError("--through needs two recipes, as in --through tiny-distill..tiny-stage2")
    return recipes.chain(first, last)


if __name__ == "__main__":
    main()
