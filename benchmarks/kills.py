"""What kills change: curation, recaptioning and encoding, killed again and again in the middle, against a calm run.

A kill waits until a job has published some more files, and is a SIGKILL of one of its Ray workers, of its driver, or of
both; the job is then started again. At the end every published file must be the same, byte for byte, but for reports,
which tell times.

    python -m benchmarks.kills --json FILE
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from rich.progress import track

from benchmarks._report import Aim, Report, Row
from showo2.shards import Manifest
from showo2.tiny.sources import Options as World
from showo2.tiny.sources import write_sources

# Says when and how a run went, which is not what it made.
_TOLD = ("report.html", "report.json", "curate.json", "recaption.json", "recaption_report.json", "encode.json")


@dataclass(frozen=True)
class Options:
    """json: where the report goes. kills: of all jobs together. pictures, seed: of the world; the seed draws the moments too."""

    json: str = "build/benchmarks/kills.json"
    kills: int = 10
    pictures: int = 3000
    seed: int = 0


def jobs(world: Path, data: Path) -> list[list[str]]:
    """The three commands."""
    sources = [word for name in ("web", "synthetic", "instruct") for word in ("--source", f"{name}={world}/{name}/*.tar")]
    return [["jobs.curate", *sources, "--out", str(data)],
            ["jobs.recaption", "--data", str(data), "--captioner", "tiny:captioner"],
            ["jobs.encode", "--data", str(data), "--vae", "tiny:vae", "--size", "64"]]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """The job, in a session of its own."""
    return subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)


def finish(command: list[str]) -> None:
    """Run the job to its end. Raises RuntimeError where it fails."""
    if start(command).wait():
        raise RuntimeError(f"{' '.join(command)} failed; run it by hand to see why")


def kill_once(command: list[str], folder: Path, draw: random.Random) -> str:
    """Start the job and kill it once it has published one to six files more; what died, or `nothing` where it was over."""
    wanted, victims = len(files(folder)) + draw.randint(1, 6), draw.choice(("worker", "driver", "worker and driver"))
    job = start(command)
    while job.poll() is None and len(files(folder)) < wanted:
        time.sleep(0.005)
    family = [] if job.poll() is not None else psutil.Process(job.pid).children(recursive=True)
    workers = [p for p in family if _at_work(p)]
    if not workers:
        job.wait()
        return "nothing"
    if "worker" in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(workers).kill()
    if "driver" in victims:
        job.kill()
    job.wait()
    while any(map(_at_work, workers)):
        time.sleep(0.1)
    return victims


def files(folder: Path) -> list[Path]:
    """Every file below a folder that may be changing, or not there yet."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _at_work(process: psutil.Process) -> bool:
    """Whether this is a Ray worker that lives; Ray's agents stay for a while after a driver, and do no harm."""
    with contextlib.suppress(psutil.Error):
        return "".join(process.cmdline()[:1]).startswith(("ray::Map", "ray::_Worker", "ray::IDLE"))
    return False


def published(folder: Path) -> dict[str, bytes]:
    """Every file that a run made."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in files(folder) if p.name not in _TOLD}


def run(options: Options) -> Report:
    """A calm run and a killed one of the same world."""
    draw = random.Random(options.seed)
    deaths: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(World(folder / "world", options.pictures, options.seed, rows=100))
        calm, killed = folder / "calm", folder / "killed"
        for command in jobs(folder / "world", calm):
            finish(command)
        commands = jobs(folder / "world", killed)
        for i, command in enumerate(commands):
            for _ in track(range((options.kills - len(deaths)) // (len(commands) - i)), f"killing {command[0]}"):
                deaths.append(kill_once(command, killed, draw))
            finish(command)
        ours, theirs = published(calm), published(killed)
        same = Manifest.load(str(calm)).hash == Manifest.load(str(killed)).hash
    differing = sum(ours.get(k) != theirs.get(k) for k in ours.keys() | theirs.keys())
    rows = [Row(f"kills that hit {what}", deaths.count(what), "") for what in sorted(set(deaths))]
    rows.append(Row("files compared", len(ours), ""))
    return Report("kills", rows, [Aim("files that differ from the calm run's", differing, "==", 0),
                                  Aim("manifests of one hash", float(same), "==", 1)])


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
