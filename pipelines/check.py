"""The validator: reads a source as curation would, writes nothing, and names what is wrong and what to do."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc

from pipelines.facts import Limits, read_facts
from pipelines.presets import PRESETS
from pipelines.publish import filesystem
from pipelines.sources import plan

CURES = {
    "missing_image": "each key needs one picture or video beside its text: KEY.jpg and KEY.txt; texts alone are read "
    "from a source NAME:text=PATH",
    "missing_caption": "add KEY.txt, or a caption or conversations in KEY.json",
    "several_pictures": "one picture a key; give the others keys of their own",
    "duplicate_member": "the same name stands twice in the tar",
    "missing_text": 'add KEY.txt, or a "text" or "conversations" in KEY.json',
    "bad_document": 'KEY.json needs "texts" and "images": equally long lists of strings, null where there is none',
    "missing_picture": "the document keeps its text; entry j of its images that is not null is KEY.j.jpg, from 0",
    "unnamed_picture": "each picture of a document is KEY.j.jpg and entry j, from 0, of the images that are not null",
    "bad_json": "KEY.json must be one JSON object",
    "bad_conversation": 'KEY.json needs "conversations": [{"from": "human", "value": "<image>..."}, {"from": "gpt", ...}]',
    "caption_encoding": "write texts as UTF-8",
    "truncated": "the picture's file is not whole; fetch it again",
    "tar_cut": "the tar is not whole; copy it again",
    "tar_no_end": "the tar ends early; rows may be missing; copy it again",
    "not_a_tar": "sources are uncompressed tars",
    "repeated_key": "keys must differ within a source: two tars hold the same one",
}


@dataclass(frozen=True)
class Trouble:
    """One bad row, or picture KEY.N of a document: where it is, its class of error (or `missing_caption`), what was
    found."""

    tar: str
    key: str
    error: str
    detail: str

    def describe(self) -> str:
        """A line for people, with the cure where there is one."""
        cure = CURES.get(self.error)
        found = f"{self.tar}: {self.key}: {self.error}" + (f" ({self.detail})" if self.detail else "")
        return f"{found}; {cure}" if cure else found


@dataclass
class Findings:
    """What a check saw: rows by kind, and troubles by class."""

    rows: Counter[str]
    troubles: Counter[str]


def check_source(spec: str, limits: Limits, findings: Findings) -> Iterator[Trouble]:
    """The troubles of a source (NAME=PATH, NAME:PRESET=PATH, or a path alone), in order; fills `findings` on the way.

    Raises InputError where the path is not there or nothing in it is a tar.
    """
    keys: dict[str, str] = {}
    for shard in plan([spec if "=" in spec else f"source={spec}"]):
        fs, path = filesystem(shard.unit.path)
        with fs.open(path, "rb", block_size=8 << 20) as file:
            facts = read_facts(file, shard.unit, limits, PRESETS[shard.preset])
        findings.rows.update(facts.filter(pc.not_equal(facts["kind"], "damage"))["kind"].to_pylist())
        for row in facts.select(["key", "kind", "text", "pictures", "error", "detail"]).to_pylist():
            error, detail = row["error"], row["detail"] or ""
            if error is None and row["kind"] in ("pair", "video") and not row["text"]:
                error = "missing_caption"
            elif error is None and row["key"] in keys:
                error, detail = "repeated_key", f"also in {keys[row['key']]}"
            keys.setdefault(row["key"], shard.unit.path)
            if error is not None:
                found = [(row["key"], error, detail)]
            else:
                pictures = [picture for picture in row["pictures"] or [] if picture["error"] is not None]
                found = [(f"{row['key']}.{p['number']}", p["error"], p["detail"]) for p in pictures]
            for key, trouble, what in found:
                findings.troubles[trouble] += 1
                yield Trouble(shard.unit.path, key, trouble, what)
