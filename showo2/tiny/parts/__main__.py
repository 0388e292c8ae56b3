"""`python -m showo2.tiny.parts --out DIR`: train the shipped parts, measure them, write their model card."""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import tyro

from showo2.tiny.parts.card import write_card
from showo2.tiny.parts.lanes import LANES, PARTS, run_lane


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
        multiprocessing.get_context("spawn").Process(
            target=run_lane, args=(lane, options.out, options.effort)
        )
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


if __name__ == "__main__":
    main(tyro.cli(Options))
