"""The tiny ladder, from a world of shapes to the larger model, and what its scale-up is worth.

The chain of recipes as `jobs.train --through tiny-distill..tiny-7b-stage2` trains it, on data of the demo's steps; then
the larger model again, with a fresh flow head and no teacher. The fresh arm has the same stages but the alignment, and
twice the steps in which the chain's larger model drew as well as the small one; the judge scores both arms' checkpoints.
Run again on the same folder, it goes on.

    python -m benchmarks.ladder --json FILE [--out DIR]
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro

from benchmarks._report import Aim, Report, Row
from jobs import demo as demo_steps
from jobs._steps import Step, read_journal, run_steps
from jobs.demo import Demo
from jobs.evaluate import Evaluate
from jobs.evaluate import run as evaluate
from jobs.train import Train, train
from showo2 import recipes
from showo2.model import checkpoint
from showo2.model.transfer import SEMANTIC_LAYERS, transfer
from showo2.train.recipe import Recipe
from showo2.train.start import export_checkpoint, from_parts

DATA = {"world": demo_steps.make_world, "curate": demo_steps.curate_world, "recaption": demo_steps.recaption_world,
        "encode": demo_steps.encode_world}  # fmt: skip
SMALL = ("tiny-distill", "tiny-stage1", "tiny-stage2")
ALIGN, FROZEN, LARGE = "tiny-7b-align", "tiny-7b-stage1", "tiny-7b-stage2"
SCORED = (SMALL[-1], ALIGN, FROZEN, LARGE)
# What is aligned would lose much of it at such rates (docs/log.md); what begins with a fresh flow head needs them.
FRESH_RATES = {FROZEN: 2e-3, LARGE: 1.5e-3}


@dataclass(frozen=True)
class Options:
    """out: folder for everything. json: where the report goes. pictures, seed: of the world. every: steps between the
    scored checkpoints. steps: of the larger model's last stage, by default the recipe's. quick: a few steps, which show that
    everything runs."""

    out: Path = Path("build/benchmarks/ladder")
    json: str = "build/benchmarks/ladder.json"
    pictures: int = 60_000
    seed: int = 0
    every: int = 250
    steps: int | None = None
    quick: bool = False


def recipe_of(options: Options, name: str) -> Recipe:
    """The recipe that the benchmark trains: as shipped, but for the options."""
    recipe = replace(recipes.get(name), seed=options.seed)
    if name in (ALIGN, LARGE):
        recipe = replace(recipe, checkpoint_every=options.every, keep=1000)
    if name == LARGE:
        recipe = replace(recipe, steps=options.steps or recipe.steps)
    if options.quick:
        recipe = replace(recipe, steps=4, noised_steps=2, warmup=1, log_every=1, checkpoint_every=4)
    return recipe


def train_stage(options: Options, recipe: Recipe, folder: Path, init: Path | None) -> str:
    """One stage in `folder`, from the run `init`."""
    data = (str(options.out / "data"),)
    if train(Train(recipe, data, str(folder), str(init) if init else None)) != "finished":
        raise KeyboardInterrupt
    return f"{recipe.steps} steps"


def fresh(options: Options) -> str:
    """A larger model that has taken over the distilled semantic layers only, in `fresh/start`."""
    recipe, folder = recipe_of(options, ALIGN), options.out / "fresh" / "start"
    model, tokenizer = from_parts(recipe)
    transfer(model, options.out / "chain" / SMALL[0] / "export", SEMANTIC_LAYERS).check()
    checkpoint.save_pretrained(model, folder)
    tokenizer.save_pretrained(folder)
    return "semantic layers carried, everything else new"


def score(options: Options, run: Path, step: int | None = None) -> str:
    """The judge's scores of a run's checkpoint, written beside the run."""
    path = scores_of(run, step)
    if not path.exists():
        exported = run / f"export_{step}" if step else run / "export"
        if step:
            export_checkpoint(run, exported, step)
        suite = {"pictures": 1, "questions": 1, "points": 4} if options.quick else {}
        evaluate(Evaluate(json=path, checkpoint=str(exported), seed=options.seed, **suite))
    return f"pictures {read(path, 'picture'):.1%}, questions {read(path, 'question'):.1%}"


def scores_of(run: Path, step: int | None = None) -> Path:
    """Where `score` writes."""
    return run / (f"scores_{step}.json" if step else "scores.json")


def read(path: Path, part: str) -> float:
    """The share that is right, of pictures or of questions."""
    return json.loads(path.read_text())[part]["score"]


def carried_steps(options: Options) -> list[Step]:
    """The chain and the judge's looks at it, with the seconds that each takes on two cores."""
    demo = Demo(options.out, options.pictures, None, options.quick, options.seed)
    listed = [Step(name, "data", 60, partial(function, demo)) for name, function in DATA.items()]
    seconds = {SMALL[0]: 60, SMALL[1]: 60, SMALL[2]: 1700, ALIGN: 2000, FROZEN: 70, LARGE: 3800}
    init = None
    for name, expected in seconds.items():
        listed.append(trained(options, "chain", recipe_of(options, name), init, expected))
        init = options.out / "chain" / name
        if name in SCORED:
            listed.append(Step(f"scores {name}", "the judge", 30, partial(score, options, init)))
    return listed + judged(options, "chain")


def fresh_steps(options: Options) -> list[Step]:
    """The fresh arm, whose length is known when the judge has seen the chain."""
    start = options.out / "fresh" / "start"
    frozen, last = map(faster, (recipe_of(options, FROZEN), longer(options)))
    return [Step("fresh", "the larger model without the small one's flow head", 2, partial(fresh, options)),
            trained(options, "fresh", frozen, start, 70),
            trained(options, "fresh", last, options.out / "fresh" / FROZEN, 0.95 * last.steps),
            *judged(options, "fresh")]  # fmt: skip


def faster(recipe: Recipe) -> Recipe:
    """A stage of the fresh arm, at its own rate."""
    return replace(recipe, groups=(replace(recipe.groups[0], lr=FRESH_RATES[recipe.name]),))


def trained(options: Options, arm: str, recipe: Recipe, init: Path | None, seconds: float) -> Step:
    """One stage of an arm."""
    folder = options.out / arm / recipe.name
    return Step(f"{arm} {recipe.name}", recipe.summary, seconds, partial(train_stage, options, recipe, folder, init))


def judged(options: Options, arm: str) -> list[Step]:
    """The judge's looks at an arm's checkpoints."""
    return [Step(f"scores {arm} after {told}", "the judge", 30, partial(score, options, run, step))
            for told, run, step in scored(options, arm)]  # fmt: skip


def longer(options: Options) -> Recipe:
    """The last stage of the fresh arm, so that in all it has twice the steps in which the chain reached the small model's
    pictures; twice all of the chain's where it never did."""
    align, frozen, large = (recipe_of(options, name) for name in (ALIGN, FROZEN, LARGE))
    steps = min(first(options, "chain", small_share(options)), align.steps + frozen.steps + large.steps)
    return replace(large, steps=2 * int(steps) - frozen.steps)


def small_share(options: Options) -> float:
    """The share of pictures that the small model gets right."""
    return read(scores_of(options.out / "chain" / SMALL[-1]), "picture")


def scored(options: Options, arm: str) -> list[tuple[int, Path, int]]:
    """An arm's checkpoints that the judge looks at: steps of the larger model so far, the run, and the step of the run."""
    stages = [recipe_of(options, name) for name in (ALIGN, FROZEN, LARGE)]
    if arm == "fresh":
        stages = [stages[1], longer(options)]
    found, before = [], 0
    for recipe in stages:
        if recipe.name != FROZEN:
            steps = {*range(recipe.checkpoint_every, recipe.steps, recipe.checkpoint_every), recipe.steps}
            found += [(before + step, options.out / arm / recipe.name, step) for step in sorted(steps)]
        before += recipe.steps
    return found


def first(options: Options, arm: str, share: float) -> float:
    """Steps of the larger model until pictures reach that share; infinite where they never do."""
    reached = (told for told, run, step in scored(options, arm) if read(scores_of(run, step), "picture") >= share)
    return next(reached, float("inf"))


def run(options: Options) -> Report:
    """Train, score, compare; what the chain alone shows is printed before the fresh arm begins."""
    options.out.mkdir(parents=True, exist_ok=True)
    run_steps(carried_steps(options), options.out / "steps.json")
    report = of_chain(options)
    report.write(options.json)
    run_steps(fresh_steps(options), options.out / "steps.json")
    compared = of_arms(options)
    return replace(report, rows=[*report.rows, *compared.rows], aims=[*report.aims, *compared.aims])


def of_chain(options: Options) -> Report:
    """The chain's time and its scores."""
    journal = read_journal(options.out / "steps.json")
    seconds = {name: note["seconds"] for name, note in journal.items() if name.startswith("chain ") or name in DATA}
    rows = [Row(f"seconds: {name}", value, "s") for name, value in seconds.items()]
    for name in SCORED:
        path = scores_of(options.out / "chain" / name)
        rows += [Row(f"{part}s that are right: {name}", read(path, part), "") for part in ("picture", "question")]
    rows += curve(options, "chain", "carried")
    rows.append(Row("steps to the small model's pictures: carried", first(options, "chain", small_share(options)), ""))
    last = scores_of(options.out / "chain" / LARGE)
    aims = [Aim("hours of the chain, data included", sum(seconds.values()) / 3600, "<=", 2.0),
            Aim("pictures that are right", read(last, "picture"), ">=", 0.95),
            Aim("questions that are right", read(last, "question"), ">=", 0.95)]  # fmt: skip
    return Report("ladder", rows, aims)


def of_arms(options: Options) -> Report:
    """What the carried flow head saves."""
    carried, anew = (first(options, arm, small_share(options)) for arm in ("chain", "fresh"))
    # A fresh head that does not get there needs more than all these steps: they are held against the carried one.
    least = min(anew, recipe_of(options, FROZEN).steps + longer(options).steps)
    rows = [*curve(options, "fresh", "fresh"), Row("steps to the small model's pictures: fresh", anew, "")]
    return Report("ladder", rows, [Aim("steps to the small model's pictures: carried / fresh", carried / least, "<=", 0.5)])


def curve(options: Options, arm: str, told: str) -> list[Row]:
    """The pictures that are right, by steps of the larger model."""
    return [Row(f"pictures that are right after {done} steps of the larger model, flow head {told}",
                read(scores_of(run, step), "picture"), "") for done, run, step in scored(options, arm)]  # fmt: skip


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
