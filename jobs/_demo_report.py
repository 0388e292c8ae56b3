"""The demo's one page: everything that the steps wrote, gathered into a file that needs no other."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("agg")
from matplotlib.figure import Figure
from PIL import Image

from jobs._machine import commit, machine, versions
from jobs._steps import clock, read_journal
from pipelines.publish import done
from pipelines.report import Samples, draw_samples
from showo2.evaluate.suite import KINDS
from showo2.tiny.world import CATEGORIES
from showo2.train import meters

STAGES = {"distill": "tiny-distill", "stage1": "tiny-stage1", "stage2": "tiny-stage2"}
# What to draw of each stage's metrics, with its name for people.
CURVES = {"distill": "distance to SigLIP", "cosine": "cosine with SigLIP", "flow": "flow", "ntp": "next token"}
_THUMBNAILS = 8  # of each account
_MAX_PIXELS = 20_000_000


def write_report(out: Path, options: dict[str, Any]) -> Path:
    """Gather `out` into out/report.html and return its path. Needs a Ray session (damaged pictures may crash)."""
    steps = {name: note for name, note in read_journal(out / "steps.json").items() if note["done"]}
    page = {
        "scores": scores(read(out / "scores.json")),
        "held_out": read(out / "held_out.json")["said"],
        "curation": read(out / "data" / "report.json"),
        "samples": curation_samples(str(out / "data")),
        "captions": _with_images(out / "captions", read(out / "captions.json")),
        "pictures": drawn(out),
        "answers": _with_images(out / "answers", {"examples": read(out / "answers.json")})["examples"],
        "curves": curves(out / "runs"),
        "steps": steps,
        "seconds": sum(note["seconds"] for note in steps.values()),
        "slowest": max(note["seconds"] for note in steps.values()),
        "machine": machine(),
        "versions": versions(),
        "commit": commit()[:12],
        "options": json.dumps(options),
        "clock": clock,
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    path = out / "report.html"
    path.write_text(environment.get_template("demo.html.jinja").render(page))
    return path


def read(path: Path) -> Any:
    """A JSON file's content."""
    return json.loads(path.read_text())


def scores(written: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Shares by category and by kind, in the suite's order, the score last."""
    order = {"picture": (*CATEGORIES, "score"), "question": (*KINDS, "score")}
    return {part: {name: written[part][name] for name in names} for part, names in order.items()}


def curation_samples(data: str) -> dict[str, list[dict[str, Any]]]:
    """{account: rows with thumbnails}, kept ones first."""
    samples = Samples()
    for record in done(data, "selections/base").values():
        samples.add(record["samples"])
    chosen = Samples({account: entries[:_THUMBNAILS] for account, entries in samples.entries.items()})
    order = ("kept", "dropped", "duplicate", "failed")
    entries = {
        account: [{"thumbnail": None, **entry} for entry in some]
        for account, some in draw_samples(chosen, _MAX_PIXELS).items()
    }
    return dict(sorted(entries.items(), key=lambda item: (order.index(item[0].split(":")[0]), item[0])))


def drawn(out: Path) -> list[dict[str, Any]]:
    """The pictures of jobs.generate with their prompts and the judge's verdict."""
    verdicts = read(out / "verdicts.json")
    return [{**item, "image": inline(out / "pictures" / item["file"])} for item in verdicts]


def curves(runs: Path) -> str:
    """The losses of all stages by step, one panel a stage, as an inline PNG."""
    figure = Figure(figsize=(11, 3.1), dpi=110, layout="constrained")
    for axes, (stage, recipe) in zip(figure.subplots(1, len(STAGES)), STAGES.items(), strict=True):
        lines = [line for line in meters.read(runs / stage / meters.METRICS) if "loss" in line]
        for name, label in CURVES.items():
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.4)
        axes.set_title(recipe, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _data_url(buffer.getvalue())


def inline(path: Path) -> str:
    """A small picture as a data URL, at most 112 px a side."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((112, 112))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_url(buffer.getvalue())


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _with_images(folder: Path, written: dict[str, Any]) -> dict[str, Any]:
    examples = [{**item, "image": inline(folder / item["file"])} for item in written["examples"]]
    return {**written, "examples": examples}
