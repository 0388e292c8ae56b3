"""A classifier's probability of a label, as transformers gives it for the same picture, and a label that it has not."""

import io
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from pipelines.curate import CurateConfig, add_scores, curate
from pipelines.rows import read_table
from showo2.tiny.render import render
from showo2.tiny.world import draw_scene
from tests.pipelines.conftest import write_tar

LABELS = ("clean", "watermarked", "text")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A small random classifier of three labels, in transformers' format."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32,
                       patch_size=8, initializer_range=0.5, id2label=dict(enumerate(LABELS)),
                       label2id={label: number for number, label in enumerate(LABELS)})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[CurateConfig, list[Image.Image]]:
    """A curated dataset of shapes, and its pictures."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(1)
    members, pictures = [], []
    for number in range(5):
        render(draw_scene(rng), 512).save(buffer := io.BytesIO(), "png")
        pictures.append(Image.open(buffer).convert("RGB"))
        members += [(f"{number}.png", buffer.getvalue()), (f"{number}.txt", b"some shapes on a ground")]
    write_tar(folder / "web.tar", members)
    config = CurateConfig((f"web={folder}/web.tar",), str(folder / "data"), workers=0)
    curate(config)
    return config, pictures


def test_the_stored_score_is_the_probability_of_the_label(data, classifier):
    config, pictures = data
    scored = CurateConfig((), config.out, score=(f"watermark={classifier}:watermarked",), workers=0)
    add_scores(scored)
    (file,) = (Path(config.out) / "scores" / "watermark").glob("*.parquet")
    stored = read_table(config.out, f"scores/watermark/{file.name}")["watermark"].to_pylist()
    model = ViTForImageClassification.from_pretrained(classifier)
    pixels = ViTImageProcessor.from_pretrained(classifier)(images=pictures, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**pixels).logits.softmax(-1)[:, LABELS.index("watermarked")].tolist()
    assert stored == pytest.approx(expected, abs=2e-5) and len({round(score, 3) for score in stored}) > 2


def test_a_label_that_the_model_has_not_is_named(data, classifier, ray_session):
    config, _ = data
    wanted = f"has no label 'Watermarked'; it has {', '.join(sorted(LABELS))}"
    for workers in (0, 1):
        spec = (f"watermark={classifier}:Watermarked",)
        with pytest.raises(ValueError, match=wanted):
            add_scores(CurateConfig((), config.out, score=spec, workers=workers))
