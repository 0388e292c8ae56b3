"""Which rows give way to others: repeated keys, exact duplicates, near duplicates, and copies of evaluation sets.

Each is decided over all units at once, from facts and scores, among the rows that the rules keep.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import dedup, document_pictures, near, rules
from pipelines.ledger import CAPTION, EVALUATION, NEAR, REPEATED, SAME
from pipelines.publish import IO_THREADS
from pipelines.rules import Rules
from pipelines.scores import UnitFiles

Losers = dict[int, dict[int, tuple[str, str | None]]]  # number of the unit -> row -> (why, uid of what stays)
LostPictures = dict[int, dict[int, dict[int, str]]]  # number of the unit -> row of a document -> picture -> why


@dataclass(frozen=True)
class Dedup:
    """What counts as a duplicate, besides equal bytes."""

    near_pictures: bool = False
    """Also pictures that are resized, recompressed or cropped by up to 5 % of a side."""
    near_captions: bool = False
    """Also pairs whose captions differ in little more than case, digits and punctuation."""


def find_losers(
    units: list[UnitFiles],
    evaluation: list[UnitFiles],
    thresholds: Rules,
    options: Dedup,
    workers: int | None,
) -> tuple[Losers, LostPictures]:
    """Every row that gives way, with the reason, and every picture of a document.

    `evaluation`: units of sets that must not be trained on. `workers`: as for `run_actors`, of the lookups of near copies.
    """
    losers: Losers = {}
    count = sum(unit.rows for unit in units)

    def uids(low: str, high: str) -> pa.Table:
        return _gather(units, lambda unit: _between(unit.read(["uid", "row"]), "uid", low, high))

    repeats = pa.concat_tables(dedup.repeated(part) for part in dedup.in_buckets(count, uids))
    _add(losers, repeats, REPEATED)

    def candidates(low: str, high: str) -> pa.Table:
        found = _gather(units, lambda unit: _between(_kept(unit, thresholds, ["same"]), "same", low, high))
        return _without(found, losers)  # a repeated key is out already: it must not win a group

    same = [dedup.duplicates(part) for part in dedup.in_buckets(count, candidates)]
    for part in same:
        _add(losers, part, SAME, part["duplicate_of"])
    pictures: LostPictures = {}
    if options.near_pictures or evaluation:
        pictures = _near_pictures(losers, units, evaluation, thresholds, options.near_pictures, workers)
    if options.near_captions:
        _near_captions(losers, units, thresholds, workers)
    return losers, pictures


def _near_pictures(
    losers: Losers,
    units: list[UnitFiles],
    evaluation: list[UnitFiles],
    thresholds: Rules,
    among: bool,
    workers: int | None,
) -> LostPictures:
    """`among`: also pairs of the sources among themselves; conversations about one picture are no duplicates, and a document
    may show what a pair shows. Documents lose single pictures, to evaluation sets alone."""
    table = _comparable(losers, units, evaluation, thresholds)
    from_evaluation = pc.greater_equal(table["unit"], len(units)).to_numpy()
    rank = _rank(table, from_evaluation)
    whole = table["phash"].to_numpy()
    variants = np.concatenate([_packed(table["crops"]).view("<u8"), whole[:, None]], 1)
    own, asked = np.flatnonzero(~from_evaluation), np.flatnonzero(from_evaluation)
    led: dict[int, int] = {}
    lookups = []
    if among:
        pairs = np.intersect1d(own, np.flatnonzero(pc.equal(table["kind"], "pair").to_numpy(False)))
        same = near.followers(whole, rank, pairs)
        led = dict(near.confirm(same, _thumbs(units + evaluation, table, same))[:, :2].tolist())
        own, pairs = (np.setdiff1d(numbers, list(led)) for numbers in (own, pairs))
        lookups.append(("near pictures", pairs, pairs))
    if evaluation:
        lookups += [("near evaluation pictures", own, asked), ("evaluation pictures near", asked, own)]
    found = np.concatenate([near.candidates(whole, variants, near.PICTURE_BITS, queries, held, workers, stage)
                            for stage, queries, held in lookups])  # fmt: skip
    found = near.confirm(found, _thumbs(units + evaluation, table, found))
    stays = near.settle(found, rank, led)
    whole_rows = pc.is_null(table["number"]).to_numpy(False)
    for why, chosen in ((EVALUATION, True), (NEAR, False)):
        out = {row: kept for row, kept in stays.items() if from_evaluation[kept] == chosen and whole_rows[row]}
        _give_way(losers, table, out, why)
    pictures: LostPictures = {}
    for place in table.take(pa.array([row for row in stays if not whole_rows[row]], pa.int64())).to_pylist():
        pictures.setdefault(place["unit"], {}).setdefault(place["row"], {})[place["number"]] = EVALUATION
    return pictures


def _comparable(
    losers: Losers, units: list[UnitFiles], evaluation: list[UnitFiles], thresholds: Rules
) -> pa.Table:
    """All pictures with a structure to compare: of the evaluation sets, of rows, and of documents."""
    columns = ["phash", "crops", "contrast"]
    table = _without(_gather(units, lambda unit: _kept_pictures(unit, thresholds, columns)), losers)
    if evaluation:
        forbidden = _gather(evaluation, lambda unit: _good(unit, columns), first=len(units))
        table = pa.concat_tables([forbidden, table])
    return table.filter(pc.greater_equal(table["contrast"], near.MIN_CONTRAST)).combine_chunks()


def _packed(column: pa.ChunkedArray) -> np.ndarray:
    """(N, bytes of a value) uint8 of a column of binary values of one length, without nulls."""
    values = column.combine_chunks()
    wide = values.type.byte_width
    stored = np.frombuffer(values.buffers()[1], np.uint8)
    return stored[values.offset * wide : (values.offset + len(values)) * wide].reshape(-1, wide)


def _thumbs(units: list[UnitFiles], table: pa.Table, pairs: np.ndarray) -> np.ndarray:
    """(len(table), 8, 8, 3) uint8, filled where `pairs` (P, 3) need it; read for these rows alone."""
    thumbs = np.zeros((len(table), near.THUMB, near.THUMB, 3), np.uint8)
    numbers = np.unique(pairs[:, :2])
    unit, row = (table[name].to_numpy() for name in ("unit", "row"))
    number = pc.fill_null(table["number"], -1).to_numpy()
    for part in np.unique(unit[numbers]):
        own = numbers[unit[numbers] == part]
        plain, pictures = own[number[own] < 0], own[number[own] >= 0]
        if len(plain):
            thumbs[plain] = _thumb(units[part].read(["thumb"])["thumb"].take(row[plain]))
        if len(pictures):
            rows, stored = document_pictures.flat(units[part].read(["pictures"])["pictures"])
            place = {at: n for n, at in enumerate(zip(rows.tolist(), stored["number"].to_pylist(), strict=True))}
            wanted = [place[at] for at in zip(row[pictures].tolist(), number[pictures].tolist(), strict=True)]
            thumbs[pictures] = _thumb(stored["thumb"].take(wanted))
    return thumbs


def _thumb(column: pa.ChunkedArray) -> np.ndarray:
    return _packed(column).reshape(-1, near.THUMB, near.THUMB, 3)


def _near_captions(losers: Losers, units: list[UnitFiles], thresholds: Rules, workers: int | None) -> None:
    rows = _without(_gather(units, lambda unit: _kept(unit, thresholds, ["caption_hash"])), losers)
    rows = rows.filter(
        pc.and_(pc.is_valid(rows["caption_hash"]), pc.equal(rows["kind"], "pair"))
    ).combine_chunks()
    hashes, rank = rows["caption_hash"].to_numpy(), _rank(rows)
    numbers = np.arange(len(rows))
    led = dict(near.followers(hashes, rank, numbers)[:, :2].tolist())
    numbers = np.setdiff1d(numbers, list(led))
    pairs = near.candidates(
        hashes, hashes[:, None], near.CAPTION_BITS, numbers, numbers, workers, "near captions"
    )
    _give_way(losers, rows, near.settle(pairs, rank, led), CAPTION)


def _give_way(losers: Losers, table: pa.Table, found: dict[int, int], why: str) -> None:
    """`found`: {loser: who stays}, by numbers in the table."""
    lost, kept = (pa.array(numbers, pa.int64()) for numbers in (list(found), list(found.values())))
    _add(losers, table.take(lost), why, table["uid"].take(kept))


def _rank(table: pa.Table, first: np.ndarray | None = None) -> np.ndarray:
    """(N,) places in the order of who stays: those in `first`, then more pixels, then the smaller uid."""
    behind = np.zeros(len(table), bool) if first is None else ~first
    keys = pa.table({"behind": behind, "pixels": table["pixels"], "uid": table["uid"]})
    order = pc.sort_indices(
        keys, [("behind", "ascending"), ("pixels", "descending"), ("uid", "ascending")]
    ).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _gather(units: list[UnitFiles], pick: Callable[[UnitFiles], pa.Table], first: int = 0) -> pa.Table:
    """`pick` of all units, with the number of the unit, from `first` on."""

    def read(number: int) -> pa.Table:
        table = pick(units[number])
        return table.append_column("unit", pa.array([first + number] * len(table), pa.int32()))

    with ThreadPoolExecutor(IO_THREADS) as pool:
        return pa.concat_tables(pool.map(read, range(len(units))))


def _between(table: pa.Table, column: str, low: str, high: str) -> pa.Table:
    values = table[column]
    return table.filter(pc.and_(pc.greater_equal(values, low), pc.less(values, high)))


def _kept(unit: UnitFiles, thresholds: Rules, columns: list[str]) -> pa.Table:
    """(uid, row, kind, pixels, number, *columns) of the rows that the rules keep; `number` is null."""
    return _with_pixels(_judged(unit, thresholds, columns), columns)


def _judged(unit: UnitFiles, thresholds: Rules, columns: list[str]) -> pa.Table:
    """Facts, scores and `columns` of the rows that the rules keep."""
    looked_at = [*rules.FACTS, *rules.scores_needed(thresholds)]
    table = unit.read(["uid", "row", "error", *dict.fromkeys([*looked_at, *columns])])
    return table.filter(pc.and_(pc.is_null(table["error"]), pc.is_null(rules.reasons(table, thresholds))))


def _kept_pictures(unit: UnitFiles, thresholds: Rules, columns: list[str]) -> pa.Table:
    """The same, and behind these, with `number`, the pictures that the rules keep of the documents among them."""
    rows = _judged(unit, thresholds, columns)
    documents = rows.filter(pc.equal(rows["kind"], "document"))
    pictures = document_pictures.kept(documents, lambda rows: rules.picture_reasons(rows, thresholds))
    return pa.concat_tables([_with_pixels(rows, columns), _with_pixels(pictures, columns)])


def _good(unit: UnitFiles, columns: list[str]) -> pa.Table:
    """The same of all rows that can be used."""
    table = unit.read(["uid", "row", "error", "kind", "width", "height", *columns])
    return _with_pixels(table.filter(pc.is_null(table["error"])), columns)


def _with_pixels(table: pa.Table, columns: list[str]) -> pa.Table:
    pixels = pc.multiply(pc.cast(table["width"], pa.int64()), pc.cast(table["height"], pa.int64()))
    if "number" not in table.column_names:
        table = table.append_column("number", pa.nulls(len(table), pa.int32()))
    return table.select(["uid", "row", "kind", "number", *columns]).append_column("pixels", pixels)


def _add(losers: Losers, rows: pa.Table, why: str, stays: pa.ChunkedArray | None = None) -> None:
    kept: Iterator[str | None] = iter(stays.to_pylist() if stays is not None else [None] * len(rows))
    for unit, row, uid in zip(rows["unit"].to_pylist(), rows["row"].to_pylist(), kept, strict=True):
        losers.setdefault(unit, {})[row] = (why, uid)


def _without(rows: pa.Table, losers: Losers) -> pa.Table:
    out = [unit << 32 | row for unit, places in losers.items() for row in places]
    place = pc.bit_wise_or(
        pc.shift_left(pc.cast(rows["unit"], pa.int64()), 32), pc.cast(rows["row"], pa.int64())
    )
    return rows.filter(pc.invert(pc.is_in(place, pa.array(out, pa.int64()))))
