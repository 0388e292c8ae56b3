"""The facts of a unit: one row a sample of its tar, with what the headers say and, where it is unusable, why.

Nothing is left out: a sample that cannot be used has an `error`, and a damage of the tar that no sample
accounts for has a row of its own. Pictures stay where they are; a row holds their byte range in the tar, and that of a
document those of all its pictures.
"""

import functools
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.clips import EXTENSIONS as VIDEOS
from pipelines.clips import ClipReader
from pipelines.documents import numbers, picture_number, read_segments
from pipelines.presets import PRESETS, Preset
from pipelines.probe import EXTENSIONS, Probe, ProbeError, probe
from pipelines.publish import Unit
from pipelines.tar import Damage, Member, Refused, TarReader, split_key

VERSION = 7  # goes up when the same tar gives other facts

GIVEN_SCORES = ("aesthetic", "watermark", "nsfw", "similarity")
PICTURE = pa.struct(
    [
        ("number", pa.int32()),  # its member is KEY.NUMBER.EXTENSION
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("animated", pa.bool_()),
        ("orientation", pa.int8()),
        ("hash", pa.string()),
        ("error", pa.string()),  # class of failure, or null
        ("detail", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),  # 32 hex digits, from source and key
        ("source", pa.string()),
        ("unit", pa.string()),
        ("row", pa.int32()),  # place in the unit
        ("key", pa.string()),
        ("tar", pa.string()),
        ("offset", pa.int64()),  # of the picture's bytes in the tar
        ("size", pa.int64()),  # of the picture, bytes
        ("kind", pa.string()),  # pair | conversation | video | video_conversation | document | text | damage
        ("text", pa.string()),
        ("messages", pa.string()),  # JSON: turns [{"from", "value"}, ...], or a document's segments
        ("pictures", pa.list_(PICTURE)),  # of a document, as its segments name them
        ("format", pa.string()),
        ("width", pa.int32()),  # as stored; `orientation` may turn the picture
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("animated", pa.bool_()),
        ("orientation", pa.int8()),
        ("seconds", pa.float32()),  # of a video
        ("hash", pa.string()),  # xxh3_128 of the picture's bytes
        ("same", pa.string()),  # rows with equal `same` are duplicates: see `_same`
        ("error", pa.string()),  # class of failure, or null
        ("detail", pa.string()),
        *((score, pa.float32()) for score in GIVEN_SCORES),  # as the source's preset names them, or null
    ]
)


@dataclass(frozen=True)
class Limits:
    """Budgets of the probe. `max_pixels`: width x height; the rest in bytes of one member."""

    max_pixels: int = 100_000_000
    max_picture_bytes: int = 256 << 20
    max_text_bytes: int = 1 << 20


def uid_of(source: str, key: str) -> str:
    """128-bit hex name of a row."""
    return hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=16).hexdigest()


@dataclass
class _Sample:
    """What the members of one key said so far."""

    key: str
    members: set[str] = field(default_factory=set)
    pictures: int = 0
    moving: bool = False  # whether its picture is a video
    numbered: dict[int, dict[str, Any]] = field(default_factory=dict)  # pictures of a document, as in PICTURE
    segments: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    caption: str | None = None
    json_caption: str | None = None
    errors: dict[str, str] = field(default_factory=dict)  # class -> detail, the first one of each class


# Where a conversation shows what it is about.
_SHOWN = re.compile("<(image|video)>")
# Where a sample has several errors, the first of these is its class.
_PRECEDENCE = ("tar_cut", "unsafe_name", "duplicate_member", "several_pictures", "missing_image")


def read_facts(
    file: BinaryIO, unit: Unit, limits: Limits, preset: Preset = PRESETS["img2dataset"]
) -> pa.Table:
    """Probe one tar in a single forward read: rows of `SCHEMA` in order of first appearance.

    Members of a key need not lie side by side. Raises only what reading `file` raises.
    """
    samples: dict[str, _Sample] = {}
    damages = []
    for item in TarReader(file, limits.max_picture_bytes):
        if isinstance(item, Damage):
            if not _belongs_to_sample(item, samples, preset):
                damages.append(item)
            continue
        key, extension = split_key(item.name)
        if not key.rpartition("/")[2] or not extension:
            continue  # hidden files such as ._x and .DS_Store, and names without a dot, belong to no sample
        sample = samples.setdefault(key, _Sample(key))
        if isinstance(item, Refused):
            sample.errors.setdefault("unsafe_name", f"{item.name}: {item.reason}")
        else:
            _take(sample, item, extension, limits, preset)
    rows = [_row(sample, preset) for sample in samples.values()] + [_damage_row(damage, unit) for damage in damages]
    common = {"source": unit.source, "unit": unit.id, "tar": unit.path}
    for number, row in enumerate(rows):
        row |= common | {"row": number, "uid": uid_of(unit.source, row["key"])}
    return pa.Table.from_pylist(rows, SCHEMA)


def _belongs_to_sample(damage: Damage, samples: dict[str, _Sample], preset: Preset) -> bool:
    """A cut costs the sample that it goes through: that row accounts for it."""
    key, extension = split_key(damage.name)
    if not key or not extension or damage.kind not in ("cut", "no_end"):
        return False
    if damage.kind == "no_end" and (key not in samples or _is_complete(samples[key], preset)):
        return False
    sample = samples.setdefault(key, _Sample(key))
    sample.errors["tar_cut"] = damage.describe()
    return True


def _is_complete(sample: _Sample, preset: Preset) -> bool:
    """Whether nothing that such a sample needs is missing."""
    kind = _kind(sample, preset)
    if kind == "document":
        return bool(sample.segments) and set(numbers(sample.segments)) <= sample.numbered.keys()
    told = sample.caption or sample.json_caption or "messages" in sample.values
    return bool(told and (sample.pictures or kind == "text"))


def _kind(sample: _Sample, preset: Preset) -> str:
    """What a sample is: a text only where its source is one of texts, or where a conversation asks of no picture or video."""
    turns = sample.values.get("messages")
    if sample.segments or "bad_document" in sample.errors or (sample.numbered and not sample.pictures):
        return "document"
    if not sample.pictures and (preset.kind == "texts" or (turns and not _SHOWN.search(turns))):
        return "text"
    if sample.moving:
        return "video_conversation" if turns else "video"
    return "conversation" if turns else "pair"


def _take(sample: _Sample, member: Member, extension: str, limits: Limits, preset: Preset) -> None:
    """Add what one member says to its sample."""
    number = picture_number(extension)
    if extension in sample.members or number in sample.numbered:
        sample.errors.setdefault("duplicate_member", member.name)
        return
    sample.members.add(extension)
    if number is not None:
        sample.numbered[number] = {"number": number, **_probed(member, limits, video=False)}
    elif extension in EXTENSIONS or extension in VIDEOS:
        _take_picture(sample, member, limits, extension in VIDEOS)
    elif extension in ("txt", "json"):
        if member.size > limits.max_text_bytes or member.data is None:
            sample.errors.setdefault("text_too_large", f"{member.name}: {member.size} bytes")
        elif extension == "txt":
            _take_text(sample, member.data)
        else:
            _take_json(sample, member.data, preset)


@functools.cache
def _clips() -> ClipReader:
    """One child process for all videos that this process probes."""
    return ClipReader()


def _take_picture(sample: _Sample, member: Member, limits: Limits, video: bool) -> None:
    """Probe a picture or a video; a sample has one of either."""
    sample.pictures += 1
    if sample.pictures > 1:
        sample.errors.setdefault("several_pictures", member.name)
        return
    found = _probed(member, limits, video)
    if "error" in found:
        sample.errors.setdefault(found.pop("error"), found.pop("detail"))
    else:
        sample.moving = video
    sample.values |= found


def _probed(member: Member, limits: Limits, video: bool) -> dict[str, Any]:
    """Where a picture or a video lies and what its header says, or the error that it has."""
    values: dict[str, Any] = {"offset": member.offset, "size": member.size}
    if member.data is None:
        return values | {"error": "file_too_large", "detail": f"{member.size} bytes"}
    values["hash"] = xxhash.xxh3_128_hexdigest(member.data)
    try:
        found = _probed_video(member.data) if video else vars(probe(member.data, limits.max_pixels))
    except ProbeError as error:
        return values | {"error": error.error, "detail": error.detail}
    return values | found


def _probed_video(data: bytes) -> dict[str, Any]:
    found = _clips().probe(data)
    return vars(Probe(found["format"], found["width"], found["height"], "RGB")) | {"seconds": found["seconds"]}


def _take_text(sample: _Sample, data: bytes) -> None:
    try:
        sample.caption = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        sample.errors["caption_encoding"] = f"not UTF-8 at byte {error.start}: {data[error.start :][:8]!r}"


def _take_json(sample: _Sample, data: bytes, preset: Preset) -> None:
    try:
        value = json.loads(data)
        data.decode("utf-8")
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates are no text
    except (ValueError, RecursionError) as error:
        # Only an error if the caption should have come from here: `_row` decides.
        sample.errors["bad_json"] = f"{type(error).__name__}: {error}"[:200]
        return
    if not isinstance(value, dict):
        return
    captions = (value.get(name) for name in preset.captions)
    sample.json_caption = next((text.strip() for text in captions if isinstance(text, str)), None)
    for ours, theirs in preset.scores.items():
        score = value.get(theirs)
        if isinstance(score, int | float) and not isinstance(score, bool):
            sample.values[ours] = float(score)
    if "conversations" in value:
        turns = value["conversations"]
        if not _is_conversation(turns):
            sample.errors["bad_conversation"] = (
                "not a list of {from: human | gpt, value: text} with an answer"
            )
            return
        plain = [{"from": turn["from"], "value": turn["value"]} for turn in turns]
        sample.values["messages"] = json.dumps(plain, ensure_ascii=False)
    elif "texts" in value and "images" in value:
        try:
            sample.segments = read_segments(value, sample.key, preset.clean)
        except ValueError as error:
            sample.errors["bad_document"] = str(error)


def _is_conversation(turns: Any) -> bool:
    return (
        isinstance(turns, list)
        and all(isinstance(t, dict) and isinstance(t.get("value"), str) for t in turns)
        and all(t.get("from") in ("system", "human", "gpt") for t in turns)
        and any(t["from"] == "gpt" and t["value"].strip() for t in turns)
    )


def _row(sample: _Sample, preset: Preset) -> dict[str, Any]:
    kind = _kind(sample, preset)
    row = {**sample.values, "key": sample.key, "kind": kind}
    if kind == "document":
        row |= _document(sample)
    else:
        row["text"] = preset.clean(sample.caption or sample.json_caption or "") or None
        if sample.caption is not None or "messages" in row:
            sample.errors.pop("bad_json", None)
        if kind != "text" and not sample.pictures:
            sample.errors.setdefault("missing_image", f"members: {', '.join(sorted(sample.members)) or 'none'}")
        elif kind == "text" and not row["text"] and "messages" not in row and not sample.errors:
            sample.errors["missing_text"] = f"members: {', '.join(sorted(sample.members))}"
    row["same"] = _same(row)
    if sample.errors:
        first = next((error for error in _PRECEDENCE if error in sample.errors), min(sample.errors))
        row |= {"error": first, "detail": sample.errors[first]}
    return row


def _document(sample: _Sample) -> dict[str, Any]:
    """Segments and pictures of a document. A picture that is not there has an error of its own; one that no segment
    names is the document's, because then all others may be named wrongly."""
    if not sample.segments:
        if not sample.errors:
            sample.errors["bad_document"] = f"{len(sample.numbered)} pictures, and no JSON with texts and images"
        return {}
    named = numbers(sample.segments)
    unnamed = [f"{sample.key}.{number}" for number in sorted(sample.numbered.keys() - set(named))]
    if unnamed or sample.pictures:
        sample.errors["unnamed_picture"] = f"{(unnamed or [sample.key])[0]}, beside the {len(named)} of the JSON"
    pictures = []
    for number in named:
        missing = {"number": number, "error": "missing_picture", "detail": "not in the tar"}
        pictures.append(sample.numbered.get(number, missing))
    return {"messages": json.dumps(sample.segments, ensure_ascii=False), "pictures": pictures}


def _same(row: dict[str, Any]) -> str | None:
    """A hash of what makes a row: of pairs the picture, else the pictures and the text."""
    if row["kind"] in ("pair", "video"):
        return row.get("hash")
    pictures = row.get("pictures", [row])
    told = [*(picture.get("hash") or "" for picture in pictures), row.get("messages") or row.get("text") or ""]
    return xxhash.xxh3_128_hexdigest("".join(told).encode())


def _damage_row(damage: Damage, unit: Unit) -> dict[str, Any]:
    key = f"{unit.path}@{damage.start}"
    kind = damage.kind if damage.kind == "not_a_tar" else f"tar_{damage.kind}"
    return {"key": key, "kind": "damage", "error": kind, "detail": damage.describe()}


def write_parquet(file: BinaryIO, table: pa.Table) -> None:
    """Equal tables give equal bytes."""
    pq.write_table(table, file, compression="zstd", use_dictionary=True)
