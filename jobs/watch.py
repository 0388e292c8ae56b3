"""What a run draws and answers while it trains: samples of every checkpoint, made beside the trainer.

python -m jobs.watch RUN [--prompts FILE.jsonl] [--once]

Takes each new checkpoint of RUN, draws the same prompts from the same noise, and writes RUN/samples/step_00000500.png (all
pictures with their prompts) and a line of answers in RUN/samples/answers.jsonl; TensorBoard shows both. The trainer waits
for nothing: this runs in a process, and if you like on a GPU or node, of its own. Ends with the run.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from jobs._console import told_plainly
from jobs._sheet import sheet
from jobs.generate import read_prompts

if TYPE_CHECKING:
    from PIL.Image import Image

    from showo2.generate import Showo2Pipeline
    from showo2.store import Place

SAMPLES = "samples"
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Watch:
    """Which run, and what it is asked."""

    run: tyro.conf.Positional[str]
    """the run's folder or URL"""
    prompts: Path | None = None
    """JSON lines, each {"prompt": "..."}; by default held-out prompts of the world of shapes"""
    once: bool = False
    """take the newest checkpoint and end"""
    points: int = 20
    """points of the time grid, one more than Euler steps"""
    guidance: float = 4.0
    """strength of classifier-free guidance; 1 is none"""
    seed: int = 0
    """picture i's noise depends on (seed, i) alone"""
    every_s: float = 10.0
    """seconds between looks for a new checkpoint"""
    device: str | None = None
    """where the model runs (default: a GPU if there is one)"""


def watch(config: Watch) -> list[Place]:
    """The sheets made. Raises ValueError where RUN is no run, or its newest checkpoint cannot be read with --once."""
    from showo2.store import Place
    from showo2.train.checkpoint import committed, step_of
    from showo2.train.start import CONFIG, exported_step

    run = Place(config.run)
    if not (run / CONFIG).exists():
        raise ValueError(f"{config.run} is no run of jobs.train: it has no {CONFIG}")
    prompts = None if config.prompts is None else [prompt.text for prompt in read_prompts(config.prompts)]
    made: list[Place] = []
    waiting = False
    while True:
        ended = exported_step(run)
        steps = [step_of(folder.name) for folder in committed(run / "checkpoints")]
        target = run / SAMPLES / f"step_{max(steps, default=0):08d}.png"
        if steps and not target.exists() and _samples(config, run, prompts, max(steps), target):
            made.append(target)
            Console().print(f"{target}")
        if config.once or ended >= max(steps, default=0) > 0:
            if not steps:
                raise ValueError(f"{config.run} has no checkpoint yet")
            return made
        if not waiting and not steps:
            Console().print(f"{config.run} has no checkpoint yet; waiting for one")
        waiting = True
        time.sleep(config.every_s)


def _samples(config: Watch, run: Place, prompts: list[str] | None, step: int, target: Place) -> bool:
    """Draw and answer with the checkpoint of `step`; False where the run has removed it in the meantime."""
    from showo2.generate import Showo2Pipeline
    from showo2.store import scratch
    from showo2.train.start import export_checkpoint

    samples = run / SAMPLES
    beside = scratch(samples) if samples.remote else samples.path
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".export-") as folder:
        try:
            export_checkpoint(run, folder, step)
        except (OSError, ValueError):
            if config.once:
                raise
            return False
        pipeline = Showo2Pipeline.from_pretrained(folder, device=config.device)
    answers = _answers(pipeline) if prompts is None else []
    words = prompts or _shapes_prompts()
    pictures = sheet(pipeline.image(words, config.guidance, config.points, config.seed), words)
    line = json.dumps({"step": step, "answers": answers}) + "\n"
    (samples / ANSWERS).write(((samples / ANSWERS).read() or b"") + line.encode())
    _tell_board(run / "tensorboard", step, pictures, answers)
    file = io.BytesIO()
    pictures.save(file, "PNG")
    target.write(file.getvalue())
    return True


def _shapes_prompts() -> list[str]:
    from showo2.evaluate.suite import Suite, picture_prompts

    return [prompt for _, prompt in picture_prompts(Suite(pictures=3))]


def _answers(pipeline: Showo2Pipeline) -> list[dict[str, str]]:
    """What the model says about held-out scenes of the world of shapes."""
    from showo2.evaluate.suite import Suite, scene_questions

    asked = scene_questions(Suite(questions=2))
    said = pipeline.answer([image for *_, image in asked], [question for _, question, *_ in asked], 16)
    return [{"question": question, "expected": expected, "answer": answer}
            for (_, question, expected, _), answer in zip(asked, said, strict=True)]  # fmt: skip


def _tell_board(place: Place, step: int, pictures: Image, answers: list[dict[str, str]]) -> None:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        board = SummaryWriter(folder if place.remote else place.where)
        board.add_image("samples", np.asarray(pictures), step, dataformats="HWC")
        if answers:
            lines = [f"- {a['question']} **{a['answer']}** ({a['expected']})" for a in answers]
            board.add_text("answers", "\n".join(lines), step)
        board.close()
        if place.remote:
            place.put(Path(folder))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = tyro.cli(Watch, args=arguments, description=__doc__)
    with told_plainly():
        made = watch(config)
    Console().print(f"{len(made)} new sheets in {config.run}/{SAMPLES}")


if __name__ == "__main__":
    main()
