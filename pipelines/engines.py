"""Engines of recaptioning: a model in transformers' format in this process, or an endpoint over HTTP."""

from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from pipelines.answers import Answer
from pipelines.endpoint import Endpoint, is_endpoint
from pipelines.models import HASH_DIGITS, weights_hash


class Engine(Protocol):
    """What a captioner asks. `side`: pixels of the shorter side at which it wants to see pictures."""

    side: int

    def say(self, prompt: str, pictures: list[Image.Image], hashes: list[str]) -> list[Answer]:
        """One answer a picture, in their order. OSError where the engine is dead."""


def open_engine(model: str, name: str, options: dict[str, Any]) -> Engine:
    """The engine of a folder or of an endpoint's address; `name` and `options` as of a Captioner."""
    if is_endpoint(model):
        return Endpoint(model, options["max_new_tokens"], options["answers"])
    return Transformers(model, name, options["max_new_tokens"], options["gpu"])


class Transformers:
    """An image-text-to-text model, loaded."""

    def __init__(self, folder: str, name: str, max_new_tokens: int, gpu: bool) -> None:
        if not name.endswith(found := weights_hash(folder)[:HASH_DIGITS]):
            raise RuntimeError(f"{folder} has changed since the job began: now {found}, it began with {name}")
        self.max_new_tokens = max_new_tokens
        self.device = "cuda" if gpu else "cpu"
        transformers_logging.disable_progress_bar()
        self.processor = AutoProcessor.from_pretrained(folder)
        dtype = torch.bfloat16 if gpu else torch.float32
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        self.model = model.eval().to(self.device)
        self.side = 2 * _input_side(self.processor)

    def say(self, prompt: str, pictures: list[Image.Image], hashes: list[str]) -> list[Answer]:
        """One answer a picture: greedy, until the end token or max_new_tokens."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(images=pictures, text=[text] * len(pictures), return_tensors="pt")
        inputs = inputs.to(self.device, self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens
            )
        ids = ids[:, inputs["input_ids"].shape[1] :].tolist()
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        return [self._read(row, ends) for row in ids]

    def _read(self, ids: list[int], ends: set[int]) -> Answer:
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        said = ids[:stop]
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        return Answer(text, "length" if stop is None else "stop", len(said))


def _input_side(processor: Any) -> int:
    size = processor.image_processor.size
    return max(size[name] for name in ("height", "width", "shortest_edge") if size.get(name))
