"""`python -m showo2.tiny.parts --out DIR`: train the shipped parts, measure them, write their model card."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from showo2.tiny.parts import captioner, llm, siglip, vae
from showo2.tiny.parts.card import write_card

ORDER = ("llm", "vae", "siglip", "captioner")


@dataclass(frozen=True)
class Options:
    """Train the small parts of the world of shapes."""

    out: Path
    """Folder for the parts; siglip needs llm there, captioner needs llm and siglip."""
    only: str = ",".join(ORDER)
    """Which parts to train, separated by commas."""
    effort: float = 1.0
    """Share of the usual number of steps; 1 takes about half an hour on two cores."""
    threads: int = 1
    """Threads of torch."""


def main(options: Options) -> None:
    """Train the wanted parts in the order in which they need each other; each is saved and measured when done."""
    wanted = options.only.split(",")
    unknown = sorted(set(wanted) - set(ORDER))
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: no such part; known: {','.join(ORDER)}")
    torch.set_num_threads(options.threads)
    out = options.out
    commands = {
        "llm": lambda folder: llm.train(folder, options.effort),
        "vae": lambda folder: vae.train(folder, options.effort),
        "siglip": lambda folder: siglip.train(folder, out / "llm", options.effort),
        "captioner": lambda folder: captioner.train(folder, out / "siglip", out / "llm", options.effort),
    }
    for name in (part for part in ORDER if part in wanted):
        start = time.monotonic()
        commands[name](out / name)
        minutes = (time.monotonic() - start) / 60
        measured = measure(name, out / name) | {
            "training_minutes": round(minutes, 1),
            "effort": options.effort,
        }
        (out / name / "quality.json").write_text(json.dumps(measured, indent=2) + "\n")
        print(name, json.dumps(measured), flush=True)
    write_card(out)


def measure(name: str, folder: Path) -> dict[str, float]:
    """Quality of a stored part on held-out scenes, rounded to four digits."""
    evaluate = {
        "llm": llm.evaluate,
        "vae": vae.evaluate,
        "siglip": siglip.evaluate,
        "captioner": captioner.evaluate,
    }
    return {key: round(value, 4) for key, value in evaluate[name](folder).items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
