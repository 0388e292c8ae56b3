"""`python -m showo2.tiny.parts --out DIR`: train the shipped parts, measure them, write their model card."""

import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from transformers.utils import logging

from showo2.tiny.parts import captioner, llm, siglip, vae
from showo2.tiny.parts.card import write_card

# The parts of a lane need each other in this order; lanes run side by side, one process and one thread each, which
# makes more of two cores than two threads do at these sizes.
LANES = (("llm", "siglip", "captioner"), ("vae",))
PARTS = tuple(part for lane in LANES for part in lane)


@dataclass(frozen=True)
class Options:
    """Train the small parts of the world of shapes."""

    out: Path
    """Folder for the parts; siglip needs llm there, captioner needs llm and siglip."""
    only: str = ",".join(PARTS)
    """Which parts to train, separated by commas."""
    effort: float = 1.0
    """Share of the usual number of steps; 1 takes about half an hour on two cores."""


def main(options: Options) -> None:
    """Train the wanted parts; each is saved and measured as soon as it is done."""
    wanted = options.only.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: no such part; known: {','.join(PARTS)}")
    lanes = [[part for part in lane if part in wanted] for lane in LANES]
    processes = [
        multiprocessing.get_context("spawn").Process(target=run_lane, args=(lane, options.out, options.effort))
        for lane in lanes
        if lane
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a part could not be trained; its error stands above")
    write_card(options.out)
    print(f"parts and {options.out / 'MODEL_CARD.md'} are ready")


def run_lane(parts: list[str], out: Path, effort: float) -> None:
    """Train, save and measure parts one after the other, on one thread."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    commands = {
        "llm": lambda: llm.train(out / "llm", effort),
        "vae": lambda: vae.train(out / "vae", effort),
        "siglip": lambda: siglip.train(out / "siglip", out / "llm", effort),
        "captioner": lambda: captioner.train(out / "captioner", out / "siglip", out / "llm", effort),
    }
    for part in parts:
        start = time.monotonic()
        commands[part]()
        minutes = (time.monotonic() - start) / 60
        record = {"quality": measure(part, out / part), "minutes": round(minutes, 1), "effort": effort}
        (out / part / "quality.json").write_text(json.dumps(record, indent=2) + "\n")
        print(part, json.dumps(record), flush=True)


def measure(part: str, folder: Path) -> dict[str, float]:
    """Quality of a stored part on held-out scenes, rounded to four digits."""
    evaluate = {"llm": llm.evaluate, "vae": vae.evaluate, "siglip": siglip.evaluate, "captioner": captioner.evaluate}
    return {key: round(value, 4) for key, value in evaluate[part](folder).items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
