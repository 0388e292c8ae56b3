"""A captioner: an engine that says what pictures show, and what it does with a unit's pictures.

What it says depends on nothing but the rows, the model and the options (rows in order, fixed batches, one prompt a
batch, greedy decoding), so the captions are the same whatever the number of workers, retries and kills.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from PIL import Image

from pipelines.answers import Answer, check
from pipelines.engines import open_engine
from pipelines.facts import write_parquet
from pipelines.ledger import LedgerError
from pipelines.probe import ProbeError
from pipelines.publish import Unit, fingerprint, publish, publish_record
from pipelines.rows import MediaReader, SelectedUnit, open_picture, read_rows
from pipelines.sources import InputError
from showo2.tiny.world import CAPTION_PROMPTS, STYLES

VERSION = 3  # goes up when the same pictures give other captions
DECODE_THREADS = 4
REFUSED = "failed:evaluation_prompt"
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("text", pa.string()),  # null where there is none: conversations, and pictures that cannot be decoded
        ("raw", pa.string()),  # what the engine said, before prefixes were removed and checks were made
        ("captioner", pa.string()),  # null where the row keeps its own text
        ("prompt_id", pa.string()),
        ("finish_reason", pa.string()),  # stop | length (cut at max_new_tokens) | kept | failed:CLASS
        ("tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """What the captioner is asked; `id` is recorded with each answer, `weight` says how often beside the others."""

    id: str
    text: str
    weight: int = 1


def load_prompts(captioner: str, path: str | None) -> tuple[Prompt, ...]:
    """The prompts of a JSON file, or the captioner's own. InputError if the file is not as it should be."""
    if path is None and captioner.startswith("tiny:"):
        return tuple(Prompt(style, text, STYLES[style]) for style, text in CAPTION_PROMPTS.items())
    path = path or str(Path(__file__).with_name("prompts.json"))
    try:
        entries = json.loads(Path(path).read_text())
        prompts = tuple(Prompt(entry["id"], entry["text"], int(entry.get("weight", 1))) for entry in entries)
    except OSError as error:
        raise InputError(f"--prompts {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'--prompts {path} is not a JSON list of {{"id", "text"}}: {error}') from error
    if light := [prompt.id for prompt in prompts if prompt.weight < 1]:
        raise InputError(f"--prompts {path}: the weight of {light[0]} has to be 1 or more")
    if not prompts or len({prompt.id for prompt in prompts}) != len(prompts):
        raise InputError(f"--prompts {path} needs at least one prompt, and each its own id")
    return prompts


def load_refused(path: str | None) -> list[str]:
    """The texts of a file, one a line, that no caption may equal; none without a file."""
    if path is None:
        return []
    try:
        return sorted({line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()} - {""})
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--refuse {path}: {error}") from error


def choose_prompt(uid: str, prompts: tuple[Prompt, ...]) -> Prompt:
    """By a hash of the uid, in proportion to the weights: the same one in every run."""
    number = xxhash.xxh3_64_intdigest(uid.encode()) % sum(prompt.weight for prompt in prompts)
    return prompts[bisect_right(list(accumulate(prompt.weight for prompt in prompts)), number)]


class Captioner:
    """One engine, and the work of an actor: captions of one unit after the other."""

    def __init__(self, model: str, name: str, prompts: list[dict[str, Any]], options: dict[str, Any]) -> None:
        """`model`: a folder, or an endpoint's address. `name`: what the captions carry; of a folder's model it ends
        with @ and the weights' hash. `options`: batch, max_new_tokens, skip_sources, refuse, gpu; for an endpoint also
        answers, the dataset where paid answers are kept."""
        self.name = name
        self.prompts = tuple(Prompt(**prompt) for prompt in prompts)
        self.options = options
        self.engine = open_engine(model, name, options)
        self.pool = ThreadPoolExecutor(DECODE_THREADS)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Caption one unit and publish it."""
        selected = SelectedUnit(**{**task["selected"], "unit": Unit(**task["selected"]["unit"])})
        rows = read_rows(task["data"], selected).to_pylist()
        captions = self.captions(selected.unit.path, rows)
        if [caption["uid"] for caption in captions] != [row["uid"] for row in rows]:
            raise LedgerError(f"{selected.unit.path}: {len(rows)} selected rows, {len(captions)} captions")
        publish_captions(task["data"], selected, task["print"], captions)
        return {"rows": len(captions)}

    def captions(self, tar: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One caption (fields of SCHEMA) a row, in order of the rows.

        A picture whose caption is refused is asked about with the next prompt, until there is none.
        """
        result: dict[int, dict[str, Any]] = {}
        asked: dict[int, int] = {}  # number of the row -> number of its prompt
        for number, row in enumerate(rows):
            if keeps_its_text(row, self.options):
                result[number] = kept_caption(row["uid"], row["text"])
            else:
                asked[number] = self.prompts.index(choose_prompt(row["uid"], self.prompts))
        with closing(MediaReader(tar)) as media:
            for _ in self.prompts:
                answers = self._ask(media, rows, asked)
                result |= answers
                refused = [n for n, answer in answers.items() if answer["finish_reason"] == REFUSED]
                asked = {number: (asked[number] + 1) % len(self.prompts) for number in sorted(refused)}
        return [result[number] for number in range(len(rows))]

    def _ask(
        self, media: MediaReader, rows: list[dict[str, Any]], asked: dict[int, int]
    ) -> dict[int, dict[str, Any]]:
        """Captions by number of the row, of the rows in `asked`; one prompt a batch."""
        size = self.options["batch"]
        batches = []
        for place, prompt in enumerate(self.prompts):
            own = [number for number, wanted in asked.items() if wanted == place]
            batches += [(prompt, own[start : start + size]) for start in range(0, len(own), size)]
        reads = [[rows[number] for number in numbers] for _, numbers in batches]
        answers = {}
        for (prompt, numbers), pictures in zip(batches, self._pictures(media, reads), strict=True):
            hashes = [rows[number]["hash"] for number in numbers]
            for number, caption in zip(numbers, self._answer(prompt, pictures, hashes), strict=True):
                answers[number] = {"uid": rows[number]["uid"], **caption}
        return answers

    def _pictures(
        self, media: MediaReader, reads: list[list[dict[str, Any]]]
    ) -> Iterator[list[Image.Image | ProbeError]]:
        """Decoded pictures batch by batch; the next batch is decoded while the model works on this one."""

        def submit(batch: list[dict[str, Any]]) -> list[Future[Image.Image | ProbeError]]:
            data = [media.read(row["offset"], row["size"]) for row in batch]
            return [self.pool.submit(_decode, item, self.engine.side) for item in data]

        ahead = submit(reads[0]) if reads else []
        for following in [*reads[1:], None]:
            futures, ahead = ahead, submit(following) if following else []
            if futures:
                yield [future.result() for future in futures]

    def _answer(
        self, prompt: Prompt, pictures: list[Image.Image | ProbeError], hashes: list[str]
    ) -> list[dict[str, Any]]:
        """What the engine says about each picture (fields of SCHEMA without uid); `hashes`: of the pictures' bytes."""
        good = [n for n, picture in enumerate(pictures) if isinstance(picture, Image.Image)]
        images = [picture for picture in pictures if isinstance(picture, Image.Image)]
        said = self.engine.say(prompt.text, images, [hashes[n] for n in good]) if good else []
        answers = dict(zip(good, said, strict=True))
        captions = []
        for number, picture in enumerate(pictures):
            if isinstance(picture, ProbeError):
                answer = Answer(None, f"failed:{picture.error}", 0)
            else:
                answer = answers[number]
            captions.append(caption_of(answer, self.name, prompt, self.options["refuse"]))
        return captions


def caption_of(answer: Answer, name: str, prompt: Prompt, refuse: list[str]) -> dict[str, Any]:
    """The checked caption (fields of SCHEMA without uid) that an engine's answer gives."""
    text, reason = check(answer)
    if text is not None and text in refuse:
        text, reason = None, REFUSED
    return {
        "text": text,
        "raw": answer.text,
        "captioner": name,
        "prompt_id": prompt.id,
        "finish_reason": reason,
        "tokens": answer.tokens,
    }


def publish_captions(data: str, selected: SelectedUnit, print_: str, captions: list[dict[str, Any]]) -> None:
    """Write one unit's captions and its record."""
    table = pa.Table.from_pylist(captions, SCHEMA)
    relpath = f"captions/{fingerprint(selected.unit.id, print_)}.parquet"
    entry = publish(data, relpath, lambda out: write_parquet(out, table))
    record = {
        "unit": selected.unit,
        "fingerprint": print_,
        "selection": selected.hash,
        "files": [entry],
        "rows": len(table),
        "counts": dict(sorted(Counter(caption["finish_reason"] for caption in captions).items())),
        "tokens": sum(caption["tokens"] for caption in captions),
    }
    publish_record(data, "captions", selected.unit.id, record)


def _decode(data: bytes, side: int) -> Image.Image | ProbeError:
    try:
        return open_picture(data, side)
    except ProbeError as error:
        return error


def keeps_its_text(row: dict[str, Any], options: dict[str, Any]) -> bool:
    """Conversations, and the rows of sources that are not recaptioned."""
    return row["source"] in options["skip_sources"] or row["kind"] != "pair"


def kept_caption(uid: str, text: str | None) -> dict[str, Any]:
    """The entry of a row that keeps its own text."""
    return {
        "uid": uid,
        "text": text,
        "raw": None,
        "captioner": None,
        "prompt_id": None,
        "finish_reason": "kept",
        "tokens": 0,
    }
