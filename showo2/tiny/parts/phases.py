"""Which parts are trained at the same time, and the work of one process."""

import json
import time
from pathlib import Path

import torch
from transformers.utils import logging

from showo2.tiny.parts import captioner, llm, siglip, vae

# Parts of a phase are trained side by side, one process and one thread each, which makes more of two cores than two
# threads do at these sizes. The captioner needs the language model and SigLIP.
PHASES = (("llm", "siglip"), ("captioner", "vae"), ("llm-large",))
PARTS = tuple(part for phase in PHASES for part in phase)
BY_DEFAULT = PARTS[:-1]


def run_part(part: str, out: Path, effort: float) -> None:
    """Train, save and measure a part, on one thread."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    commands = {
        "llm": lambda: llm.train(out / "llm", effort),
        "llm-large": lambda: llm.train(out / "llm-large", effort, width=192, layers=6),
        "vae": lambda: vae.train(out / "vae", effort),
        "siglip": lambda: siglip.train(out / "siglip", effort),
        "captioner": lambda: captioner.train(out / "captioner", out / "siglip", out / "llm", effort),
    }
    start = time.monotonic()
    commands[part]()
    minutes = (time.monotonic() - start) / 60
    record = {"quality": measure(part, out / part), "minutes": round(minutes, 1), "effort": effort}
    (out / part / "quality.json").write_text(json.dumps(record, indent=2) + "\n")
    print(part, json.dumps(record), flush=True)


def measure(part: str, folder: Path) -> dict[str, float]:
    """Quality of a stored part on held-out scenes, rounded to four digits."""
    evaluate = {
        "llm": llm.evaluate,
        "llm-large": llm.evaluate,
        "vae": vae.evaluate,
        "siglip": siglip.evaluate,
        "captioner": captioner.evaluate,
    }
    return {key: round(value, 4) for key, value in evaluate[part](folder).items()}
