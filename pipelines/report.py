"""report.html and report.json of a curation: counts with reasons, pictures kept and dropped, sizes, throughput."""

import base64
import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pyarrow as pa
import ray

from pipelines.probe import ProbeError
from pipelines.publish import canonical_json, publish, publish_json
from pipelines.rows import MediaReader, open_picture

if TYPE_CHECKING:
    from pipelines.curate import CurateConfig, Report

KEPT_SHOWN, OTHERS_SHOWN = 24, 8  # thumbnails of an account
THUMBNAIL = 112  # pixels, the longer side
_TEXT_SHOWN = 200  # characters
_FIELDS = ("source", "key", "tar", "offset", "size", "width", "height", "text", "error")


@dataclass
class Samples:
    """Some rows of each account: those with the smallest uids, so that a further run shows the same."""

    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: pa.Table, account: pa.Table) -> "Samples":
        """Drawn from one unit; `account` is its ledger, row by row as `facts`."""
        reasons = zip(account["outcome"].to_pylist(), account["reason"].to_pylist(), strict=True)
        names = [f"{outcome}:{reason}" if reason else outcome for outcome, reason in reasons]
        samples = cls()
        for uid, row in sorted(zip(account["uid"].to_pylist(), range(len(account)), strict=True)):
            chosen = samples.entries.setdefault(names[row], [])
            if len(chosen) < _shown(names[row]):
                entry = {name: facts[name][row].as_py() for name in _FIELDS} | _of_document(facts, row)
                entry["text"] = entry["text"] and entry["text"][:_TEXT_SHOWN]
                extra = {name: account[name][row].as_py() for name in ("detail", "duplicate_of")}
                chosen.append({"uid": uid, **entry, **extra})
        return samples

    def add(self, entries: dict[str, list[dict[str, Any]]]) -> None:
        """Take in another unit's entries."""
        for name, more in entries.items():
            together = sorted(self.entries.get(name, []) + more, key=lambda entry: entry["uid"])
            self.entries[name] = together[: _shown(name)]


def _of_document(facts: pa.Table, row: int) -> dict[str, Any]:
    """What stands for a document: its first picture that can be used, and its texts."""
    segments = json.loads(facts["messages"][row].as_py() or "[]") if facts["kind"][row].as_py() == "document" else []
    shown: dict[str, Any] = {"text": " ".join(part["text"] for part in segments if "text" in part)} if segments else {}
    usable = [picture for picture in facts["pictures"][row].as_py() or [] if picture["error"] is None]
    return shown | {name: usable[0][name] for name in ("offset", "size", "width", "height") if usable}


def _shown(account: str) -> int:
    return KEPT_SHOWN if account == "kept" else OTHERS_SHOWN


def draw_samples(samples: Samples, max_pixels: int) -> dict[str, list[dict[str, Any]]]:
    """The entries with a `thumbnail` (data URL, or None where the picture cannot be decoded)."""
    if not ray.is_initialized():  # a run in one process, workers=0
        return _draw(samples.entries, max_pixels)
    # In a process of its own: what is shown as failed may be made to crash a decoder.
    draw = ray.remote(num_cpus=1, max_retries=0)(_draw)
    try:
        return ray.get(draw.remote(samples.entries, max_pixels))
    except ray.exceptions.RayError:
        return samples.entries


def _draw(entries: dict[str, list[dict[str, Any]]], max_pixels: int) -> dict[str, list[dict[str, Any]]]:
    drawn = {}
    for account, chosen in entries.items():
        drawn[account] = [{**entry, "thumbnail": _thumbnail(entry, max_pixels)} for entry in chosen]
    return drawn


def _thumbnail(entry: dict[str, Any], max_pixels: int) -> str | None:
    if entry["offset"] is None:
        return None
    try:
        with contextlib.closing(MediaReader(entry["tar"])) as media:
            data = media.read(entry["offset"], entry["size"])
        image = open_picture(data, THUMBNAIL, max_pixels)
    except (ProbeError, OSError, EOFError):
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_report(
    root: str, report: "Report", samples: dict[str, list[dict[str, Any]]], config: "CurateConfig"
) -> None:
    """Publish `report.json` and a `report.html` that needs no other file."""
    summary = {
        "rows": report.rows,
        "total": report.total,
        "sources": report.counts,
        "hash": report.hash,
        "units": report.units,
        "bytes": report.bytes,
        "seconds": report.seconds,
        "shorter_side": report.sizes,
        "sweep": report.sweep,
        "pictures_of_documents": report.pictures,
        "damages": report.damages,
    }
    publish_json(root, "report.json", summary)
    folder = Path(__file__).parent
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True)
    options = json.dumps(json.loads(canonical_json(config)), indent=1)
    page = environment.get_template("report.html.jinja").render(
        report=report, samples=dict(sorted(samples.items(), key=_order)), options=options
    )
    publish(root, "report.html", page.encode())


def _order(item: tuple[str, Any]) -> tuple[int, str]:
    """Kept first, then what was decided, then what went wrong."""
    places = {"kept": 0, "dropped": 1, "duplicate": 2, "failed": 3}
    return places[item[0].partition(":")[0]], item[0]
