"""`python -m showo2.tiny.parts --out DIR`: train the shipped parts, measure them, write their model card."""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import tyro

from showo2.tiny.parts.card import write_card
from showo2.tiny.parts.phases import BY_DEFAULT, PARTS, PHASES, run_part


@dataclass(frozen=True)
class Options:
    """Train the small parts of the world of shapes."""

    out: Path
    """Folder for the parts; the captioner needs llm and siglip there."""
    only: str = ",".join(BY_DEFAULT)
    """Which parts to train, separated by commas; llm-large, the base of `tiny-7b-*`, is trained only on demand."""
    effort: float = 1.0
    """Share of the usual steps (and scenes, below 1); 1 takes about half an hour on two cores."""


def main(options: Options) -> None:
    """Train the wanted parts; each is saved and measured as soon as it is done."""
    wanted = options.only.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: no such part; known: {','.join(PARTS)}")
    for phase in PHASES:
        run_together([part for part in phase if part in wanted], options)
    write_card(options.out)
    print(f"parts and {options.out / 'MODEL_CARD.md'} are ready")


def run_together(parts: list[str], options: Options) -> None:
    """Train parts side by side and wait for all of them; SystemExit where one fails."""
    spawn = multiprocessing.get_context("spawn")
    running = {
        part: spawn.Process(target=run_part, args=(part, options.out, options.effort)) for part in parts
    }
    for process in running.values():
        process.start()
    for process in running.values():
        process.join()
    failed = [part for part, process in running.items() if process.exitcode]
    if failed:
        raise SystemExit(f"{', '.join(failed)}: training failed; the error stands above")


if __name__ == "__main__":
    main(tyro.cli(Options))
