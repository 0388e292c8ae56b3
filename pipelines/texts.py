"""The text of each row as its shard holds it: a caption, a conversation, or a document's segments."""

from typing import Any

import pyarrow as pa

from pipelines.documents import told
from showo2.shards import TextRow

UNTOLD = "there is no text to train on"
Failures = dict[str, tuple[str, str]]  # uid -> class, detail


def with_chosen(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `rows.read_rows`, a document with the pictures and the segments that its selection leaves."""
    if row["kind"] != "document":
        return row
    reasons = {entry["number"]: entry["reason"] for entry in row["chosen"]}
    pictures = [picture for picture in row["pictures"] if reasons[picture["number"]] is None]
    return row | {"pictures": pictures, "messages": told(row["messages"], reasons)}


def read_texts(rows: list[dict[str, Any]], captions: pa.Table | None) -> tuple[dict[str, TextRow], Failures]:
    """The text of each row by uid, and the rows that have none.

    `captions`: the table of `read_captions`; None where jobs.recaption did not run: the sources' own texts.
    """
    texts: dict[str, TextRow] = {}
    untold: Failures = {}
    made = captions.to_pylist() if captions is not None else [None] * len(rows)
    for row, caption in zip(rows, made, strict=True):
        uid = row["uid"]
        text = row["text"] if caption is None else caption["text"]
        if row["messages"]:
            texts[uid] = TextRow(uid, messages=row["messages"])
        elif text:
            by = caption or {"captioner": None, "prompt_id": None}
            texts[uid] = TextRow(uid, text, "", by["captioner"] or "", by["prompt_id"] or "")
        else:
            reason = (caption or {}).get("finish_reason") or ""
            untold[uid] = (reason.removeprefix("failed:") or "no_text", UNTOLD)
    return texts, untold
