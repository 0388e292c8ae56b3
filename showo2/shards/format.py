"""What stands in the files of a shard: columns, schema metadata, checksums."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import xxhash

FORMAT = 1
BATCH_ROWS = 64
UID_BYTES = 16
_METADATA_KEY = b"showo2"

Bucket = tuple[int, int, int]


class ShardError(Exception):
    """A file of a shard is missing, cut or of another format; the message names the file and the cure."""


class DamagedRow(Exception):
    """A row's bytes do not match its checksum, or its sidecar is of another row; names uid, row and shard."""

    def __init__(self, uid: str, row: int, path: str, what: str):
        super().__init__(f"row {row} (uid {uid}) of {path}: {what}")
        self.uid, self.row, self.path, self.what = uid, row, path, what

    def __reduce__(self) -> tuple[Any, ...]:
        return DamagedRow, (self.uid, self.row, self.path, self.what)


@dataclass(frozen=True)
class ShardSchema:
    """What holds for every row of a shard; stands in the schema metadata of each of its files.

    kind: "pair" (a caption), "conversation", "interleaved" (a document; its latent frames are separate pictures) or
    "text" (bucket 0x0x0). bucket: latent frames, height, width. vae: hash of its weights. latent_mean, latent_std: what the latents were normalised with, one number a channel. crop: name
    of the crop policy. fingerprints: column family -> what it was made by.
    """

    source: str
    kind: str
    bucket: Bucket
    vae: str
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    crop: str
    fingerprints: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of one row's latents."""
        return len(self.latent_mean), *self.bucket

    @property
    def timed(self) -> bool:
        """Whether rows are clips, whose frames have times."""
        return self.bucket[0] > 1 and self.kind != "interleaved"

    @property
    def frames(self) -> int:
        """Pixel frames that a row's latent frames stand for: the first one for one, each other for four."""
        return 4 * self.bucket[0] - 3

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's fp16 latents."""
        channels, frames, height, width = self.shape
        return 2 * channels * frames * height * width

    def metadata(self) -> dict[bytes, bytes]:
        """As Arrow schema metadata: one canonical JSON value."""
        return {_METADATA_KEY: json.dumps(asdict(self), sort_keys=True).encode()}

    @classmethod
    def of(cls, schema: pa.Schema, path: str) -> ShardSchema:
        """Read back from an Arrow schema. Raises ShardError for a foreign file or a newer format."""
        raw = (schema.metadata or {}).get(_METADATA_KEY)
        if raw is None:
            raise ShardError(f"{path} is an Arrow file, but no shard: it lacks jobs.encode's metadata")
        values = json.loads(raw)
        if values.get("format") != FORMAT:
            raise ShardError(f"{path} has shard format {values.get('format')}, this version reads {FORMAT}; "
                             "run jobs.encode again")
        for name in ("bucket", "latent_mean", "latent_std"):
            values[name] = tuple(values[name])
        return cls(**values)

    def latents_schema(self) -> pa.Schema:
        """Columns of the latents file; every one is of fixed width, latents last."""
        columns = [
            ("uid", pa.binary(UID_BYTES)), ("width", pa.int32()), ("height", pa.int32()),
            ("crop", pa.list_(pa.int32(), 4)), ("checksum", pa.uint64()),
        ]
        if self.timed:
            columns.append(("times", pa.list_(pa.float32(), self.frames)))
        columns.append(("latents", pa.binary(self.row_bytes)))
        return pa.schema(columns, metadata=self.metadata())

    def text_schema(self) -> pa.Schema:
        """Columns of the text sidecar."""
        columns = [
            ("uid", pa.binary(UID_BYTES)), ("text", pa.string()), ("messages", pa.string()),
            ("captioner", pa.string()), ("prompt_id", pa.string()), ("checksum", pa.uint64()),
        ]
        return pa.schema(columns, metadata=self.metadata())

    def teacher_schema(self) -> pa.Schema:
        """Columns of the teacher sidecar."""
        columns = [("uid", pa.binary(UID_BYTES)), ("jpeg", pa.binary()), ("checksum", pa.uint64())]
        return pa.schema(columns, metadata=self.metadata())


@dataclass(frozen=True, slots=True)
class TextRow:
    """The text of one row: a caption, a conversation, or the segments of an interleaved document.

    messages: JSON, empty for a pair. Of a conversation `[{"from": "human" | "gpt", "value": ...}, ...]`, of a document
    `[{"text": ...} | {"image": number of the latent frame}, ...]`. captioner, prompt_id: who wrote the caption, asked
    what (empty: the source's own text).
    """

    uid: str
    text: str = ""
    messages: str = ""
    captioner: str = ""
    prompt_id: str = ""

    def checksum(self) -> int:
        """xxh3_64 of what is trained on."""
        return xxhash.xxh3_64_intdigest(f"{self.text}\0{self.messages}".encode())

    def conversation(self) -> list[dict[str, Any]]:
        """The messages or segments, parsed; empty for a pair."""
        return json.loads(self.messages) if self.messages else []
