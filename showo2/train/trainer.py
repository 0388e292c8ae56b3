"""One trainer for every stage: a recipe says what to do, this says how.

Imports nothing of Ray: it runs in one process, under torchrun, and as the function of Ray Train's workers.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from showo2.data.loader import Batch, Loader, Stream, read_blocklist
from showo2.data.mixture import Cursor
from showo2.data.order import make_key
from showo2.hardware import has_bf16
from showo2.store import Place, Where, scratch
from showo2.train import start, tracking
from showo2.train.checkpoint import Checkpoints, State
from showo2.train.cost import Flops, flops, peak
from showo2.train.goodput import FILE as GOODPUT
from showo2.train.goodput import Goodput
from showo2.train.guard import SpikeWatch, read_skips
from showo2.train.losses import Distillation, Objective, Taught, Unified
from showo2.train.meters import METRICS, Meters
from showo2.train.mirror import Mirror
from showo2.train.optimizer import Average, build_optimizer, clip, freeze, rate, set_rate, squared_norm
from showo2.train.parallel import Workers, blocks, parallelize, replicas, set_gradient_sync
from showo2.train.recipe import Recipe
from showo2.train.stopwatch import Stopwatch, pace
from showo2.train.watchdog import STACKS, Watchdog

# Under autocast the weights of norms stay fp32, as is meant; the kernel that would mind is one that CPUs do not have.
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")

Outcome = Literal["finished", "stopped"]

# What a run that goes on needs of what it has written before, beside its checkpoints; the first is always there.
KEPT = (start.CONFIG, METRICS, GOODPUT, *(f"{tracking.FOLDER}/{name}" for name in tracking.KEPT))


class Diverged(RuntimeError):
    """Too many steps were not finite, or too many rows unreadable; the message names samples."""


@dataclass(frozen=True)
class Step:
    """What a step was like, summed over ranks: the loss, its terms' means, the gradient's norm, tokens, lost rows."""

    loss: float
    terms: dict[str, float]
    norm: float
    tokens: int
    lost: int
    stop: bool
    save: bool
    flops: Flops

    @property
    def finite(self) -> bool:
        """Whether the update was made."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Trainer:
    """A run of `recipe` on `data` (manifests or dataset folders) in the folder or at the URL `out`; every rank makes one.

    init: what the stage goes on from. stop, save_now: asked in every step, on every rank, whether to save and leave
    after it, or only to save. on_checkpoint: told of every checkpoint begun (step and metrics). track: trackers beside
    TensorBoard. A folder that holds checkpoints is resumed from the newest.
    """

    def __init__(self, recipe: Recipe, data: tuple[str, ...], out: Where, init: str | None = None,
                 workers: Workers | None = None, stop: Callable[[], bool] = lambda: False,
                 on_checkpoint: Callable[[dict[str, Any]], None] = lambda facts: None,
                 save_now: Callable[[], bool] = lambda: False, track: tuple[tracking.Name, ...] = ()):
        self.recipe, self.out, self.workers = recipe, Place(out), workers or Workers()
        self.stop, self.on_checkpoint, self.save_now, self.track = stop, on_checkpoint, save_now, track
        self.manifests = start.check(recipe, data, self.out, init)
        self.workers.barrier()
        # On a store, what is appended to is kept here and copied there.
        self.folder = scratch(self.out) if self.out.remote else self.out.path
        self.mirror = Mirror(self.folder, self.out, KEPT, (STACKS,)) if self.out.remote and self.workers.first else None
        _write_config(self.folder, recipe, data, init, self.workers)
        self.goodput = Goodput(self.folder) if self.workers.first else None
        self.model, self.tokenizer = start.build_model(recipe, init, self.workers.first)
        if self.workers.first:
            start.write_model(self.model, self.tokenizer, self.folder)
        trained = freeze(self.model, recipe)
        self.objective = self._objective(init)
        # What a stage does not compute with (all but S, in distillation) stays where it is.
        self.objective.root.to(self.workers.device)
        units = [block for block in blocks(self.model) if block in set(self.objective.root.modules())]
        parallelize(self.objective.root, units, self.workers, recipe.parallel)
        self.autocast = recipe.parallel.precision == "autocast" and has_bf16()
        self.replicas = replicas(self.workers, recipe.parallel)
        self.stopwatch = Stopwatch(units, self.workers.device)
        # Sharding replaces parameters: take those of today.
        self.trained = {name: p for name, p in self.model.named_parameters() if name in trained}
        self.optimizer = build_optimizer(self.trained, recipe)
        self.average = Average(self.trained, recipe.ema)
        # What a checkpoint's metrics file said must be there with it.
        publish = self.mirror.push if self.mirror else lambda: None
        self.checkpoints = Checkpoints(self.out / "checkpoints", self.workers, recipe.keep, publish)
        self.done, self.skipped, self.lost = 0, 0, 0
        self.data_state: dict[str, Any] | None = None
        self.spikes = SpikeWatch(recipe.spike)
        self._resume()

    def _objective(self, init: str | None) -> Objective:
        recipe, device = self.recipe, self.workers.device
        if recipe.distills:
            return Distillation(self.model, recipe.model.siglip, device)
        if recipe.taught:
            teacher = start.build_teacher(recipe, str(init), self.tokenizer, device)
            return Taught(self.model, recipe.alpha, recipe.taught, teacher)
        return Unified(self.model, recipe.alpha)

    def run(self) -> Outcome:
        """Train to the end, or until asked to stop; then the weights are saved, and exported at the end."""
        first, told = self.workers.first, self.track if self.workers.first else ()
        with self.mirror or nullcontext():
            meters = Meters(self.folder, self.done, self.recipe.log_every, self.recipe.steps) if first else None
            with tracking.Trackers(told, self.folder, self.out.name, self.done) as trackers:
                trackers.outcome = outcome = self._run(meters)
        return outcome

    def _run(self, meters: Meters | None) -> Outcome:
        loader = Loader(self._stream(), self.manifests, self.tokenizer, self.workers.rank, self.workers.world,
                        self.done, self.data_state, self.recipe.readers)
        watchdog = Watchdog(self.folder / STACKS, self.workers.rank, self.recipe.hang_s)
        try:
            outcome = self._loop(loader, meters, watchdog)
            self.checkpoints.wait()
        finally:
            watchdog.close()
            loader.close()
            if meters:
                meters.close()
        if outcome == "finished":
            story = {"recipe": self.recipe.name, "step": self.done, "data": [m.hash for m in self.manifests]}
            start.export(self.model, self.average.weights, self.tokenizer, self.out, self.workers, story)
        return outcome

    def _loop(self, loader: Loader, meters: Meters | None, watchdog: Watchdog) -> Outcome:
        batches = iter(loader)
        if self.goodput:
            self.goodput.started()
        while self.done < self.recipe.steps:
            watchdog.beat()
            begin = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - begin
            step = self.step(batch)
            self.done += 1
            self.data_state = batch.state
            self.lost += step.lost
            if self.goodput:
                self.goodput.lost["data"] += waited
                self.goodput.step(self.done, time.monotonic() - begin - waited, step.finite)
            self._report(step, batch, waited, meters)
            asked = step.stop or step.save
            if asked or self.done % self.recipe.checkpoint_every == 0 or self.done == self.recipe.steps:
                self.save(step)
            if step.stop and self.done < self.recipe.steps:
                return "stopped"
        return "finished"

    def step(self, batch: Batch) -> Step:
        """One update from this rank's part of a global batch; none where loss or gradient is not finite."""
        # Whatever a layer may draw is a function of the step: no generator's state has to outlive a process.
        torch.manual_seed(make_key(self.recipe.seed, "step", self.done))
        counts, tokens, lost, stop, save, work = self._count(batch)
        sums = torch.zeros(len(counts), dtype=torch.float64)
        weights = torch.tensor(self.objective.weights) / counts.clamp(min=1)
        for i, micro in enumerate(batch.micro):
            set_gradient_sync(self.objective.root, i == len(batch.micro) - 1)
            with torch.autocast(self.workers.device.type, torch.bfloat16, self.autocast):
                parts = self.objective.sums(micro.to(self.workers.device))
            (parts * weights.to(parts)).sum().backward()
            sums += parts.detach().double().cpu()
        norm = squared_norm(self.trained.values()).cpu() / self.replicas
        facts = self.workers.sum(torch.cat([sums, norm[None]]))
        means = facts[:-1] / counts.clamp(min=1)
        loss = float((torch.tensor(self.objective.weights).double() * means).sum())
        # A part that no sample of this step has tells nothing; terms of the loss are told also where they are 0.
        terms = zip(self.objective.terms, means.tolist(), counts.tolist(), self.objective.weights, strict=True)
        told = {name: mean for name, mean, count, weight in terms if count or weight}
        step = Step(loss, told, math.sqrt(float(facts[-1])), tokens, lost, stop, save, work)
        if step.finite:
            clip(self.trained.values(), step.norm, self.recipe.clip)
            set_rate(self.optimizer, rate(self.done, self.recipe))
            self.optimizer.step()
            self.average.update(self.done)
        self.optimizer.zero_grad(set_to_none=True)
        return step

    def _count(self, batch: Batch) -> tuple[Tensor, int, int, bool, bool, Flops]:
        """Over all ranks: the terms' counts (float64), tokens, lost rows, whether one shall stop or save, and FLOPs."""
        counts = [self.objective.counts(micro) for micro in batch.micro]
        work = sum((flops(micro, self.model.config, self.recipe) for micro in batch.micro), Flops(0.0, 0.0))
        local = [sum(term) for term in zip(*counts, strict=True)]
        local += [batch.tokens, len(batch.lost), self.stop(), self.save_now(), work.useful, work.done]
        everyone = self.workers.sum(torch.tensor(local, dtype=torch.float64))
        *terms, tokens, lost, stop, save, useful, done = everyone.tolist()
        return (torch.tensor(terms, dtype=torch.float64), int(tokens), int(lost), stop > 0, save > 0,
                Flops(useful, done))

    def _report(self, step: Step, batch: Batch, waited: float, meters: Meters | None) -> None:
        if not step.finite:
            self._skip(step, batch, meters)
        elif self.recipe.spike and self.spikes.add(step.loss):
            self._tell_spike(batch, meters)
        if self.done == self.recipe.steps - self.recipe.noised_steps:
            self.spikes.forget()  # Inputs are noised from here on, and the loss is higher because of that.
        if step.lost:
            lost = [message for part in self.workers.gather(batch.lost) for message in part]
            self._event(meters, lost_rows=lost)
            if self.lost > self.recipe.max_damaged:
                raise Diverged(f"{self.lost} rows could not be read, more than max_damaged={self.recipe.max_damaged}; "
                               f"the last ones: {'; '.join(lost[:5])}")
        self._measure(step, waited, meters)

    def _measure(self, step: Step, waited: float, meters: Meters | None) -> None:
        latest: dict[str, float] = {"lr": self.optimizer.param_groups[0]["lr"], "skipped": self.skipped,
                                    "lost": self.lost}
        self.stopwatch.step()
        if self.done % self.recipe.log_every == 0 or self.done == self.recipe.steps:
            latest |= pace(self.workers.gather(self.stopwatch.read()))
            latest |= self.goodput.write() if self.goodput else {}
        if not meters or not step.finite:
            return
        rates = {"samples_per_s": self.recipe.batch, "tokens_per_s": step.tokens,
                 "tflop_per_s": step.flops.useful / 1e12}
        if top := peak(self.workers.device):
            rates |= {"mfu": step.flops.useful / (top * self.workers.world),
                      "hfu": step.flops.done / (top * self.workers.world)}
        means = {"loss": step.loss, **step.terms, "grad_norm": step.norm, "data_wait_s": waited}
        meters.add(self.done, latest, rates, means)

    def _tell_spike(self, batch: Batch, meters: Meters | None) -> None:
        uids = [uid for part in self.workers.gather(batch.uids) for uid in part]
        self._event(meters, spike_uids=uids)
        if self.workers.first:
            warnings.warn(f"step {self.done}: the loss stands above {self.recipe.spike} times its mean for some steps; "
                          f"to go back and leave these samples out: python -m jobs.rewind {self.out} --to "
                          f"{max(0, self.done - 100)} --skip 200", stacklevel=2)

    def _skip(self, step: Step, batch: Batch, meters: Meters | None) -> None:
        self.skipped += 1
        uids = [uid for part in self.workers.gather(batch.uids) for uid in part]
        what = f"step {self.done} is not finite (loss {step.loss}, gradient norm {step.norm}) and skipped"
        if self.workers.first:
            warnings.warn(f"{what}; its {len(uids)} samples: {', '.join(uids[:4])}, ...", stacklevel=2)
        self._event(meters, skipped_uids=uids, loss=str(step.loss), grad_norm=str(step.norm))
        if self.skipped > self.recipe.max_skipped:
            raise Diverged(f"{what}, as were {self.skipped - 1} before, more than max_skipped="
                           f"{self.recipe.max_skipped}; the last samples: {', '.join(uids[:16])}")

    def _event(self, meters: Meters | None, **facts: Any) -> None:
        if meters:
            meters.event(self.done, **facts)

    def save(self, step: Step) -> None:
        """Begin a checkpoint of where the run stands."""
        facts = {"step": self.done, "skipped": self.skipped, "lost": self.lost, "data": self.data_state,
                 "manifests": [m.hash for m in self.manifests], "world": self.workers.world}
        begin = time.monotonic()
        self.checkpoints.save(self.done, self._state(), facts)
        if self.goodput:
            self.goodput.lost["save"] += time.monotonic() - begin
        self.on_checkpoint({"step": self.done, "loss": step.loss})

    def _resume(self) -> None:
        facts = self.checkpoints.load_newest(self._state())
        if facts is None:
            return
        self.done, self.skipped, self.lost, self.data_state = (
            facts[name] for name in ("step", "skipped", "lost", "data"))
        if batches := read_skips(self.out).get(str(self.done)):
            weights = {entry.name: entry.samples for entry in self.recipe.mixture if entry.samples}
            self.data_state = Cursor.load(weights, self.data_state).skip(batches * self.recipe.batch).state_dict()
        if self.workers.first and facts["manifests"] != [m.hash for m in self.manifests]:
            warnings.warn(f"the data changed since step {self.done}: sources go on at the sample numbers they had "
                          "reached, in the order of the new data", stacklevel=2)

    def _state(self) -> State:
        moments = {f"{name}.{key}": value for name, p in self.trained.items()
                   for key, value in self.optimizer.state[p].items()}
        return {"model": self.model.state_dict(), "average": self.average.weights, "optimizer": moments}

    def _stream(self) -> Stream:
        r, config = self.recipe, self.model.config
        return Stream(r.mixture, r.bucket, r.context, config.conversation, r.seed, config.llm["hidden_size"],
                      r.caption_dropout, r.noised, r.steps - r.noised_steps, config.siglip["image_size"], r.accumulate,
                      r.window, read_blocklist(r.blocklist))


def _write_config(out: Path, recipe: Recipe, data: tuple[str, ...], init: str | None, workers: Workers) -> None:
    if workers.first:
        out.mkdir(parents=True, exist_ok=True)
        resolved = {"recipe": asdict(recipe), "data": list(data), "init": init, "workers": workers.world}
        temporary = out / f"{start.CONFIG}.tmp"
        temporary.write_text(json.dumps(resolved, indent=1))
        temporary.rename(out / start.CONFIG)
