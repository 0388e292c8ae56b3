"""The whole recipe, small and for real: `make demo`, or python -m jobs.demo --out runs/demo

Makes a world of coloured shapes as web sources would hold it, then curates, recaptions, encodes, trains three stages,
draws, answers, and judges, with the functions behind the other commands. Ends with one report.html. Run again after
an interruption, it goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from jobs import _demo_checks as checks
from jobs._console import told_plainly
from jobs._demo_report import STAGES, read, write_report
from jobs._ray import connect
from jobs._steps import Step, run_steps
from jobs.evaluate import Evaluate
from jobs.evaluate import run as evaluate
from jobs.generate import Generate, generate
from jobs.train import Train, train
from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, encode
from pipelines.recaption import RecaptionConfig, recaption
from showo2 import recipes
from showo2.evaluate.shapes import judge_picture
from showo2.evaluate.suite import Asked, Suite, picture_prompts, scene_questions
from showo2.generate import Showo2Pipeline
from showo2.tiny.sources import SHARES, Options, write_sources
from showo2.tiny.world import CATEGORIES, prompts


@dataclass(frozen=True)
class Demo:
    """Where it goes and how large it is."""

    out: Path
    """folder for everything; the report is OUT/report.html"""
    pictures: int = 24_000
    """pictures of the world"""
    steps: int | None = None
    """of stage 2, the last one; by default as many as its recipe has"""
    quick: bool = False
    """a few training steps and few questions: shows that everything runs, and learns nothing"""
    seed: int = 0
    """of the world, the training and the drawing"""

    @property
    def suite(self) -> Suite:
        """What is evaluated; the defaults are those of every score in the documents."""
        return Suite(pictures=1, questions=1, points=4, seed=self.seed) if self.quick else Suite(seed=self.seed)

    @property
    def shown(self) -> Suite:
        """What the report shows: fewer, and drawn from other noise."""
        return replace(self.suite, pictures=1 if self.quick else 4, questions=1 if self.quick else 6, seed=self.seed + 1)

    @property
    def checkpoint(self) -> str:
        """The model that is judged."""
        return str(self.out / "runs" / "stage2" / "export")


def steps(demo: Demo) -> list[Step]:
    """Everything in order, with the seconds that each takes on two cores."""
    return [
        Step("world", "draw a world of shapes and write it as web sources do: tars, some of it broken", 40,
             partial(make_world, demo)),
        Step("curate", "headers, rules, duplicates: every row ends kept, dropped, failed or duplicate", 10,
             partial(curate_world, demo)),
        Step("recaption", "a LLaVA captioner looks at the web's pictures; other captions stay", 30,
             partial(recaption_world, demo)),
        Step("encode", "pictures to latents of the Wan VAE, in Arrow shards", 30, partial(encode_world, demo)),
        Step("distill", "semantic layers learn SigLIP's features from latents", 40, partial(stage, demo, "distill")),
        Step("stage1", "projector, fusion and flow head learn to draw and to caption", 70,
             partial(stage, demo, "stage1")),
        Step("stage2", "the whole model learns on pictures, captions and conversations", 880,
             partial(stage, demo, "stage2")),
        Step("generate", "draw held-out prompts", 2, partial(draw, demo)),
        Step("answer", "answer questions about held-out pictures", 2, partial(answer, demo)),
        Step("evaluate", "six categories of pictures and five kinds of questions, all held out", 8,
             partial(score, demo)),
        Step("check", "that nothing of what was asked stands in the training set", 2, partial(check, demo)),
    ]  # fmt: skip


def run(demo: Demo) -> Path:
    """All steps, then the report, whose path comes back. Raises ValueError where OUT holds a demo of other options."""
    options = json.loads(json.dumps(asdict(demo), default=str))
    written = demo.out / "config.json"
    if written.exists() and read(written) != options:
        raise ValueError(f"{demo.out} holds a demo with options {read(written)}: choose another --out, or delete it")
    demo.out.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(options) + "\n")
    run_steps(steps(demo), demo.out / "steps.json")
    return write_report(demo.out, options)


def make_world(demo: Demo) -> str:
    """The sources, and the truth about them. Forks, so it comes before Ray's threads."""
    rows = 20 if demo.quick else 1000
    truth = write_sources(Options(demo.out / "world", demo.pictures, demo.seed, rows))
    return ", ".join(f"{source}: {facts['rows']:,} rows in {facts['tars']} tars" for source, facts in truth["sources"].items())


def curate_world(demo: Demo) -> str:
    """Facts, duplicates, selection, ledger."""
    connect()
    patterns = tuple(f"{source}={demo.out / 'world' / source}/*.tar" for source in SHARES)
    report = curate(CurateConfig(source=patterns, out=str(demo.out / "data")))
    total = report.total
    rest = ", ".join(f"{rows:,} {account}" for account, rows in total.items() if account != "kept")
    return f"{report.rows:,} rows: {total['kept']:,} kept, {rest}"


def recaption_world(demo: Demo) -> str:
    """Captions of the web's pictures, compared with the truth before and after."""
    connect()
    asked = demo.out / "evaluation_prompts.txt"
    asked.write_text("".join(f"{prompt}\n" for c in CATEGORIES for prompt in prompts(c, held_out=True)))
    report = recaption(RecaptionConfig(data=str(demo.out / "data"), refuse=str(asked)))
    quality = checks.caption_quality(demo.out / "world", str(demo.out / "data"), demo.out / "captions")
    checks.write(demo.out / "captions.json", quality)
    return (f"{quality['rows']:,} pictures described with {report.tokens:,} tokens; captions that are right: "
            f"{quality['before']:.0%} before, {quality['after']:.1%} after")  # fmt: skip


def encode_world(demo: Demo) -> str:
    """Shards of latents with text and teacher crops."""
    connect()
    report = encode(EncodeConfig(data=str(demo.out / "data")))
    quality = f", decode at {report.psnr[0]:.1f} dB" if report.psnr else ""
    return f"{report.rows:,} rows in {report.shards} shards, {report.bytes / 1e6:.1f} MB{quality}"


def stage(demo: Demo, name: str) -> str:
    """One stage of training; each starts from the one before."""
    names = list(STAGES)
    before = names[: names.index(name)]
    recipe = replace(recipes.get(STAGES[name]), seed=demo.seed)
    if name == names[-1] and demo.steps is not None:
        recipe = replace(recipe, steps=demo.steps)
    if demo.quick:
        recipe = replace(recipe, steps=4, noised_steps=2, warmup=1, log_every=1)
    folder = demo.out / "runs" / name
    init = str(demo.out / "runs" / before[-1]) if before else None
    workers = 0 if demo.quick else 2
    outcome = train(Train(recipe, (str(demo.out / "data"),), str(folder), init, workers))
    if outcome != "finished":
        raise KeyboardInterrupt
    last = checks.last_metrics(folder)
    return f"{recipe.steps} steps, loss {last['loss']:.3f}, {recipe.batch / last['step_s']:.0f} samples/s"


def draw(demo: Demo) -> str:
    """Some held-out prompts of every category, through jobs.generate, with the judge's verdicts."""
    suite, path, pictures = demo.shown, demo.out / "prompts.jsonl", demo.out / "pictures"
    chosen = picture_prompts(suite)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for _, prompt in chosen))
    request = Generate(path, str(pictures), demo.checkpoint, suite.seed, suite.points, suite.guidance)
    names = [entry["path"] for entry in generate(request)["files"]]
    verdicts = [
        {"prompt": prompt, "file": name, "right": judge_picture(prompt, checks.picture(pictures / name))}
        for (_, prompt), name in zip(chosen, names, strict=True)
    ]
    checks.write(demo.out / "verdicts.json", verdicts)
    return f"{sum(item['right'] for item in verdicts)} of {len(verdicts)} pictures show what was asked"


def answer(demo: Demo) -> str:
    """Some questions of every kind, about pictures of held-out scenes."""
    suite, folder = demo.shown, demo.out / "answers"
    folder.mkdir(exist_ok=True)
    asked = scene_questions(suite)
    pipeline = Showo2Pipeline.from_pretrained(demo.checkpoint)
    answers = pipeline.answer([item[3] for item in asked], [item[1] for item in asked], 16)
    written: list[dict[str, Any]] = []
    for number, ((kind, question, expected, image), said) in enumerate(zip(asked, answers, strict=True)):
        name = f"{number:05d}.png"
        image.save(folder / name)
        right = Asked(kind, question, expected, said, image).right
        written.append({"question": question, "expected": expected, "answer": said, "right": right, "file": name})
    checks.write(demo.out / "answers.json", written)
    return f"{sum(item['right'] for item in written)} of {len(written)} answers are right"


def score(demo: Demo) -> str:
    """The suite `shapes`, through jobs.evaluate."""
    path = demo.out / "scores.json"
    report = evaluate(Evaluate(json=path, checkpoint=demo.checkpoint, **asdict(demo.suite)))
    picture, question = (report.scores[part]["score"] for part in ("picture", "question"))
    return f"pictures {picture:.1%}, questions {question:.1%}"


def check(demo: Demo) -> str:
    """What was asked against what was trained on. Raises RuntimeError where they meet."""
    said = checks.held_out(demo.out / "world", str(demo.out / "data"), demo.suite)
    checks.write(demo.out / "held_out.json", {"said": said})
    return said


def main() -> None:
    """The command line."""
    demo = tyro.cli(Demo, description=__doc__)
    with told_plainly():
        report = run(demo)
    Console().print(f"\n[bold]{report.resolve()}[/] has it all on one page")


if __name__ == "__main__":
    main()
