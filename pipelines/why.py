"""The whole story of one row: what its headers said, what it scored, where it ended and why, and what became of it."""

from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import rules
from pipelines.publish import Unit, done, filesystem, records
from pipelines.rows import families, read_table
from pipelines.scores import score_files
from pipelines.sources import InputError


def why(out: str, uid: str) -> list[str]:
    """Lines for a reader. `uid`: of a row, its first digits if no other row's begin so, or SOURCE/KEY.

    InputError where the dataset has no such row, or several.
    """
    account = _account(out, uid)
    unit = records(out, "facts", only=[account["unit"]])[account["unit"]]
    (files,) = score_files(out, [(Unit(**unit["unit"]), unit)])
    names = [name for name in files.columns if name not in ("phash", "crops", "thumb", "caption_hash")]
    (row,) = files.read(names).slice(account["row"], 1).to_pylist()
    lines = [
        f"{account['uid']}: {account['source']}/{account['key']}",
        f"  in {row['tar']}, row {row['row']}",
    ]
    if row["offset"] is not None:
        lines.append(f"  bytes {row['offset']:,} to {row['offset'] + row['size']:,}, xxh3 {row['hash']}")
    if row["width"] is not None:
        lines.append(f"  {row['format']} {row['width']} x {row['height']}, {row['mode']}")
    lines.append(f"  text: {row['text']!r}" if row["kind"] in ("pair", "text", "video") else f"  {row['kind']}")
    lines += [f"  {_picture(picture)}" for picture in row["pictures"] or []]
    lines += [f"  scores: {', '.join(_scored(row))}"] if _scored(row) else []
    lines += [f"account: {_ended(account)}", *_copies(out, account["uid"]), *_chosen(out, account)]
    return [*lines, *_captioned(out, account), *_encoded(out, account)]


def _picture(picture: dict[str, Any]) -> str:
    """A picture of a document."""
    if picture["error"] is not None:
        return f"picture {picture['number']}: {picture['error']} ({picture['detail']})"
    return ", ".join(["picture {number}: {format} {width} x {height}, {mode}".format(**picture), *_scored(picture)])


def _scored(row: dict[str, Any]) -> list[str]:
    return [f"{name} {row[name]}" for name in rules.SCORES if row.get(name) is not None]


def _account(out: str, uid: str) -> dict[str, Any]:
    """The row's line in the ledger."""
    fs, base = filesystem(out)
    if not fs.exists(f"{base}/ledger.parquet"):
        raise InputError(f"no ledger in {out}: run jobs.curate --source NAME=PATH --out {out} first")
    source, slash, key = uid.partition("/")
    found = []
    with fs.open(f"{base}/ledger.parquet", "rb") as file:
        book = pq.ParquetFile(file)
        for group in range(book.num_row_groups):
            table = book.read_row_group(group)
            if slash:
                hit = pc.and_(pc.equal(table["source"], source), pc.equal(table["key"], key))
            else:
                hit = pc.starts_with(table["uid"], uid)
            found += table.filter(hit).to_pylist()
    if len(found) != 1:
        rows = "no row" if not found else f"{len(found)} rows"
        raise InputError(
            f"--why {uid}: {rows} of {out} {'has' if not found else 'have'} this uid; give it whole"
        )
    return found[0]


def _ended(account: dict[str, Any]) -> str:
    if account["outcome"] == "duplicate":
        return f"duplicate of {account['duplicate_of']}" + (
            f", {account['detail']}" if account["detail"] else ""
        )
    parts = (account["outcome"], account["reason"] and f"({account['reason']})", account["detail"])
    return " ".join(part for part in parts if part)


def _copies(out: str, uid: str) -> list[str]:
    ledger = read_table(out, "ledger.parquet", ["uid", "duplicate_of"])
    copies = ledger.filter(pc.equal(ledger["duplicate_of"], uid))["uid"].to_pylist()
    return [f"stands for its duplicates {', '.join(copies)}"] if copies else []


def _chosen(out: str, account: dict[str, Any]) -> list[str]:
    """Which selections have it; of the others, why not."""
    lines = []
    for family in families(out, "selections"):
        name = family.partition("/")[2]
        record = done(out, family, only=[account["unit"]]).get(account["unit"])
        if record is None or name == "base":
            continue
        part = read_table(out, record["files"][1]["path"])
        for row in part.filter(pc.equal(part["uid"], account["uid"])).to_pylist():
            lines.append(f"selection {name}: {_ended(row)}")
    return lines


def _captioned(out: str, account: dict[str, Any]) -> list[str]:
    record = done(out, "captions", only=[account["unit"]]).get(account["unit"])
    if record is None:
        return []
    captions = read_table(out, record["files"][0]["path"])
    return [
        f"caption: {row['text']!r} by {row['captioner']}, prompt {row['prompt_id']}, {row['finish_reason']}"
        for row in captions.filter(pc.equal(captions["uid"], account["uid"])).to_pylist()
    ]


def _encoded(out: str, account: dict[str, Any]) -> list[str]:
    lines = []
    for family in families(out, "latents"):
        record = done(out, family, only=[account["unit"]]).get(account["unit"])
        for entry in record["files"] if record else []:
            if entry["path"].endswith(".arrow") and entry["path"].count(".") == 1:
                lines.append(f"{family}: its unit's shard is {entry['path']}")
    return lines
