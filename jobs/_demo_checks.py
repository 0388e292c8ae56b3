"""What the demo knows and no real run does: the truth about its world. Captions and held-out prompts against it."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.facts import uid_of
from pipelines.rows import MediaReader, load_selection, open_picture, read_captions, read_rows
from showo2.evaluate.suite import Suite, picture_prompts
from showo2.shards import Manifest
from showo2.tiny.world import Object, Scene, parse, satisfies, shows_held_out
from showo2.train import meters

_SHOWN = 16


@dataclass(frozen=True)
class Captioned:
    """A kept picture of the web: its alt text, its new caption, and whether each is right."""

    uid: str
    before: str
    after: str
    was_right: bool
    right: bool
    tar: str
    offset: int
    size: int


def truth(world: Path) -> dict[str, Scene]:
    """{uid: what the picture shows} of every row that was written."""
    scenes = {}
    for path in sorted((world / "truth").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            scenes[uid_of(row["source"], row["key"])] = Scene(tuple(Object(**thing) for thing in row["scene"]))
    return scenes


def is_right(text: str, scene: Scene) -> bool:
    """Whether a caption describes exactly this scene; what is no caption of this world is not right."""
    try:
        return satisfies(scene, parse(text))
    except ValueError:
        return False


def caption_quality(world: Path, data: str, folder: Path) -> dict[str, Any]:
    """Shares of right captions among the web's kept pictures, before and after; some pictures go to `folder`."""
    scenes = truth(world)
    rows = list(_recaptioned(data, scenes))
    chosen = random.Random(0).sample(sorted(rows, key=lambda row: row.uid), min(_SHOWN, len(rows)))
    folder.mkdir(parents=True, exist_ok=True)
    for row in chosen:
        with contextlib.closing(MediaReader(row.tar)) as media:
            image = open_picture(media.read(row.offset, row.size), 128)
        image.thumbnail((128, 128))
        image.save(folder / f"{row.uid}.png")
    examples = [{"file": f"{r.uid}.png", "before": r.before, "after": r.after, "right": r.right} for r in chosen]
    return {"rows": len(rows), "before": _share([row.was_right for row in rows]),
            "after": _share([row.right for row in rows]), "examples": examples}  # fmt: skip


def _recaptioned(data: str, scenes: dict[str, Scene]) -> Iterator[Captioned]:
    for unit in load_selection(data).units:
        captions = read_captions(data, unit) if unit.unit.source == "web" else None
        if captions is None:
            continue
        columns = read_rows(data, unit).select(["uid", "text", "tar", "offset", "size"]).to_pylist()
        for row, caption in zip(columns, captions["text"].to_pylist(), strict=True):
            scene, before, caption = scenes[row["uid"]], row.pop("text") or "", caption or ""
            yield Captioned(before=before, after=caption, was_right=is_right(before, scene),
                            right=is_right(caption, scene), **row)  # fmt: skip


def held_out(world: Path, data: str, suite: Suite) -> str:
    """A line for people. Raises RuntimeError where training met what is asked: the prompt of a picture as a text,
    or a picture of a held-out scene."""
    asked = {prompt for _, prompt in picture_prompts(suite)}
    texts, uids = training_set(data)
    if met := sorted(asked & texts):
        raise RuntimeError(f"{len(met)} of {len(asked)} prompts are training texts, say {met[0]!r}")
    scenes = truth(world)
    seen = [uid for uid in uids if shows_held_out(scenes[uid])]
    if seen:
        raise RuntimeError(f"{len(seen)} of {len(uids)} training pictures show a held-out scene, say {seen[0]}")
    return (f"none of the {len(asked)} prompts is among the {len(texts):,} different training texts, and none of the "
            f"{len(uids):,} training pictures shows a held-out one")  # fmt: skip


def training_set(data: str) -> tuple[set[str], list[str]]:
    """(captions of pairs and answers of conversations, uids of all rows) of the shards that training reads."""
    texts: set[str] = set()
    uids: list[str] = []
    for shard, reader in Manifest.load(f"{data}/latents").readers():
        rows = [reader.text(i) for i in range(len(reader))]
        uids += [row.uid for row in rows]
        if shard.kind == "pair":
            texts |= {row.text for row in rows}
        else:
            texts |= {turn["value"] for row in rows for turn in json.loads(row.messages)}
    return texts, uids


def last_metrics(run: Path) -> dict[str, Any]:
    """The last logged step of a run."""
    return [line for line in meters.read(run / meters.METRICS) if "loss" in line and "step_s" in line][-1]


def picture(path: Path) -> Image.Image:
    """A picture file, decoded."""
    with Image.open(path) as image:
        return image.convert("RGB")


def write(path: Path, value: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value, indent=1) + "\n")


def _share(verdicts: list[bool]) -> float:
    return sum(verdicts) / max(1, len(verdicts))
