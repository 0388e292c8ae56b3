"""Shards: latents, texts and teacher pictures in Arrow IPC files, read at random rows without copies.

A shard is one unit of one source in one bucket (latent frames x height x width). Three files share a row
order: latents (fixed-width columns), text (rewritten alone when captions change) and, for distillation, the
teacher's JPEGs.
"""

from showo2.shards.format import DamagedRow, ShardError, ShardSchema, TextRow
from showo2.shards.manifest import Manifest, Shard
from showo2.shards.reader import Row, ShardReader
from showo2.shards.writer import write_latents, write_teacher, write_text

__all__ = [
    "DamagedRow", "Manifest", "Row", "Shard", "ShardError", "ShardReader", "ShardSchema", "TextRow",
    "write_latents", "write_teacher", "write_text",
]
