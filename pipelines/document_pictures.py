"""The pictures of documents, as lists of structs that stand beside the rows: measured one by one, judged one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Row = dict[str, Any]


def as_rows(document: Row) -> list[Row]:
    """The pictures of a document that can be looked at, as rows of facts are: a place in the tar, and no text."""
    own = {"uid": document["uid"], "kind": "document", "text": None}
    return [{**picture, **own} for picture in document["pictures"] or [] if picture["error"] is None]


def flat(pictures: pa.ChunkedArray) -> tuple[np.ndarray, pa.Table]:
    """Of a column of lists: for each picture the number of its row, and a table of all pictures."""
    lists = pictures.combine_chunks()
    return pc.list_parent_indices(lists).to_numpy(), pa.Table.from_struct_array(pc.list_flatten(lists))


def _folded(like: pa.ChunkedArray, flat: pa.Table) -> pa.Array:
    """The lists of `like` with other pictures, as many in each."""
    lengths = pc.fill_null(pc.list_value_length(like), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    values = flat.to_struct_array().combine_chunks()
    return pa.ListArray.from_arrays(offsets, values, mask=like.is_null().combine_chunks())


def with_scores(pictures: pa.ChunkedArray, scores: pa.ChunkedArray) -> pa.Array:
    """Pictures with what they scored, of two columns with the same lists; an error stays, one of the scores is added."""
    _, table = flat(pictures)
    _, found = flat(scores)
    for name in found.column_names:
        known = name in table.column_names
        values = pc.coalesce(table[name], found[name]) if known else found[name]
        table = table.drop([name]) if known else table
        table = table.append_column(name, values)
    return _folded(pictures, table)


def with_errors(rows: pa.Table, lost: dict[int, dict[int, str]]) -> pa.Table:
    """`rows` whose pictures have an error more, and are so left out: {place in the table: {number of the picture: error}}."""
    if not lost:
        return rows
    parents, table = flat(rows["pictures"])
    places = zip(parents.tolist(), table["number"].to_pylist(), strict=True)
    errors = pa.array([lost.get(row, {}).get(number) for row, number in places], pa.string())
    named = {name: table[name] for name in table.column_names}
    named["error"] = pc.coalesce(table["error"], errors)
    column = rows.schema.get_field_index("pictures")
    return rows.set_column(column, "pictures", _folded(rows["pictures"], pa.table(named)))


def kept(documents: pa.Table, why: Callable[[pa.Table], list[dict[int, str | None]]]) -> pa.Table:
    """The pictures that stay, of documents that stay, with `uid`, `row` and `kind` of their documents.

    `why`: for each row, of its pictures in order why each is left out.
    """
    parents, table = flat(documents["pictures"])
    stays = pa.array([reason is None for reasons in why(documents) for reason in reasons.values()], pa.bool_())
    for name in ("uid", "row", "kind"):
        table = table.append_column(name, documents[name].take(pa.array(parents, pa.int64())))
    return table.filter(stays)
