"""A captioner: a vision-language model in transformers' format, and what it does with a unit's pictures.

What it says depends on nothing but the rows, the model and the options (rows in order, fixed batches, one prompt a
batch, greedy decoding), so the captions are the same whatever the number of workers, retries and kills.
"""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import xxhash
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from pipelines.facts import write_parquet
from pipelines.ledger import LedgerError
from pipelines.models import HASH_DIGITS, weights_hash
from pipelines.probe import ProbeError
from pipelines.publish import Unit, fingerprint, publish, publish_record
from pipelines.rows import MediaReader, SelectedUnit, open_picture, read_rows
from pipelines.sources import InputError
from showo2.tiny.world import CAPTION_PROMPTS

VERSION = 2  # goes up when the same pictures give other captions
DECODE_THREADS = 4
REFUSED = "failed:evaluation_prompt"
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("text", pa.string()),  # null where there is none: conversations, and pictures that cannot be decoded
        ("captioner", pa.string()),  # null where the row keeps its own text
        ("prompt_id", pa.string()),
        ("finish_reason", pa.string()),  # stop | length (cut at max_new_tokens) | kept | failed:CLASS
        ("tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """What the captioner is asked; `id` is recorded with each answer."""

    id: str
    text: str


def load_prompts(captioner: str, path: str | None) -> tuple[Prompt, ...]:
    """The prompts of a JSON file, or the captioner's own. InputError if the file is not as it should be."""
    if path is None and captioner.startswith("tiny:"):
        return tuple(Prompt(*item) for item in CAPTION_PROMPTS.items())
    path = path or str(Path(__file__).with_name("prompts.json"))
    try:
        entries = json.loads(Path(path).read_text())
        prompts = tuple(Prompt(entry["id"], entry["text"]) for entry in entries)
    except OSError as error:
        raise InputError(f"--prompts {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'--prompts {path} is not a JSON list of {{"id", "text"}}: {error}') from error
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
    """By a hash of the uid: the same one in every run."""
    return prompts[xxhash.xxh3_64_intdigest(uid.encode()) % len(prompts)]


class Captioner:
    """One loaded model, and the work of an actor: captions of one unit after the other."""

    def __init__(
        self, folder: str, name: str, prompts: list[dict[str, str]], options: dict[str, Any]
    ) -> None:
        """`options`: batch, max_new_tokens, skip_sources, refuse, gpu. `name` ends with @ and the weights' hash."""
        if not name.endswith(found := weights_hash(folder)[:HASH_DIGITS]):
            raise RuntimeError(f"{folder} has changed since the job began: now {found}, it began with {name}")
        self.name = name
        self.prompts = tuple(Prompt(**prompt) for prompt in prompts)
        self.options = options
        self.device = "cuda" if options["gpu"] else "cpu"
        transformers_logging.disable_progress_bar()
        self.processor = AutoProcessor.from_pretrained(folder)
        dtype = torch.bfloat16 if options["gpu"] else torch.float32
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        self.model = model.eval().to(self.device)
        self.side = 2 * _input_side(self.processor)
        self.pool = ThreadPoolExecutor(DECODE_THREADS)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Caption one unit and publish it."""
        selected = SelectedUnit(**{**task["selected"], "unit": Unit(**task["selected"]["unit"])})
        rows = read_rows(task["data"], selected).to_pylist()
        captions = self.captions(selected.unit.path, rows)
        table = pa.Table.from_pylist(captions, SCHEMA)
        if table["uid"].to_pylist() != [row["uid"] for row in rows]:
            raise LedgerError(f"{selected.unit.path}: {len(rows)} selected rows, {len(table)} captions")
        relpath = f"captions/{fingerprint(selected.unit.id, task['print'])}.parquet"
        entry = publish(task["data"], relpath, lambda out: write_parquet(out, table))
        record = {
            "unit": selected.unit,
            "fingerprint": task["print"],
            "selection": selected.hash,
            "files": [entry],
            "rows": len(table),
            "counts": dict(sorted(Counter(caption["finish_reason"] for caption in captions).items())),
            "tokens": sum(caption["tokens"] for caption in captions),
        }
        publish_record(task["data"], "captions", selected.unit.id, record)
        return {"rows": len(table)}

    def captions(self, tar: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One caption (fields of SCHEMA) a row, in order of the rows.

        A picture whose caption is refused is asked about with the next prompt, until there is none.
        """
        result: dict[int, dict[str, Any]] = {}
        asked: dict[int, int] = {}  # number of the row -> number of its prompt
        for number, row in enumerate(rows):
            if row["source"] in self.options["skip_sources"] or row["kind"] != "pair":
                result[number] = _caption(row["uid"], row["text"], "kept")
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
            for number, caption in zip(numbers, self._answer(prompt, pictures), strict=True):
                answers[number] = {"uid": rows[number]["uid"], **caption}
        return answers

    def _pictures(
        self, media: MediaReader, reads: list[list[dict[str, Any]]]
    ) -> Iterator[list[Image.Image | ProbeError]]:
        """Decoded pictures batch by batch; the next batch is decoded while the model works on this one."""

        def submit(batch: list[dict[str, Any]]) -> list[Future[Image.Image | ProbeError]]:
            data = [media.read(row["offset"], row["size"]) for row in batch]
            return [self.pool.submit(_decode, item, self.side) for item in data]

        ahead = submit(reads[0]) if reads else []
        for following in [*reads[1:], None]:
            futures, ahead = ahead, submit(following) if following else []
            if futures:
                yield [future.result() for future in futures]

    def _answer(self, prompt: Prompt, pictures: list[Image.Image | ProbeError]) -> list[dict[str, Any]]:
        """What the model says about each picture (fields of SCHEMA without uid)."""
        good = [picture for picture in pictures if isinstance(picture, Image.Image)]
        said = iter(self._generate(prompt.text, good) if good else [])
        answers = []
        for picture in pictures:
            if isinstance(picture, ProbeError):
                text, reason, tokens = None, f"failed:{picture.error}", 0
            else:
                text, reason, tokens = next(said)
                if text in self.options["refuse"]:
                    text, reason = None, REFUSED
            answers.append(
                {
                    "text": text,
                    "captioner": self.name,
                    "prompt_id": prompt.id,
                    "finish_reason": reason,
                    "tokens": tokens,
                }
            )
        return answers

    def _generate(self, prompt: str, pictures: list[Image.Image]) -> list[tuple[str | None, str, int]]:
        """(text, finish reason, tokens) of each picture: greedy, until the end token or max_new_tokens."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(images=pictures, text=[text] * len(pictures), return_tensors="pt")
        inputs = inputs.to(self.device, self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=self.options["max_new_tokens"]
            )
        ids = ids[:, inputs["input_ids"].shape[1] :].tolist()
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        return [self._read(row, ends) for row in ids]

    def _read(self, ids: list[int], ends: set[int]) -> tuple[str | None, str, int]:
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        said = ids[:stop]
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        if not text:
            return None, "failed:empty_caption", len(said)
        return text, "length" if stop is None else "stop", len(said)


def _input_side(processor: Any) -> int:
    size = processor.image_processor.size
    return max(size[name] for name in ("height", "width", "shortest_edge") if size.get(name))


def _decode(data: bytes, side: int) -> Image.Image | ProbeError:
    try:
        return open_picture(data, side)
    except ProbeError as error:
        return error


def _caption(uid: str, text: str | None, reason: str) -> dict[str, Any]:
    return {
        "uid": uid,
        "text": text,
        "captioner": None,
        "prompt_id": None,
        "finish_reason": reason,
        "tokens": 0,
    }
