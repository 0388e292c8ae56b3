"""The shipped parts, measured again on a few held-out scenes, and the formulas of their training."""

import json
import random

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    SiglipModel,
)

from showo2.tiny import resolve, world
from showo2.tiny.parts import captioner, llm, siglip, vae
from showo2.tiny.parts.card import write_card
from showo2.tiny.parts.common import batches, photograph, pictures
from showo2.tiny.render import render
from showo2.tiny.shipped import _WEIGHTS

PARTS = ("vae", "siglip", "llm", "captioner")


def recorded(part):
    """What the model card says of a part."""
    return json.loads((_WEIGHTS / part / "quality.json").read_text())["quality"]


def test_vae_restores_held_out_pictures():
    quality = vae.evaluate(resolve("tiny:vae"), samples=24)
    assert quality["psnr_db"] >= 28 and quality["psnr_db"] == pytest.approx(
        recorded("vae")["psnr_db"], abs=1.5
    )
    assert abs(quality["latent_mean"]) < 0.2 and quality["latent_std"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("name", "part", "samples", "keys"),
    [
        ("siglip", siglip, 128, ["right_of_32"]),
        ("llm", llm, 64, ["questions_right", "questions_right_chat_layout"]),
        ("llm-large", llm, 64, ["questions_right", "questions_right_chat_layout"]),
        ("captioner", captioner, 64, ["colours_right", "shapes_right", "relations_right"]),
    ],
)
def test_part_is_as_good_as_its_card_says(name, part, samples, keys):
    """On a few held-out scenes, so within three deviations of so small a sample."""
    quality, card = part.evaluate(resolve(f"tiny:{name}"), samples=samples), recorded(name)
    for key in keys:
        assert quality[key] >= card[key] - 3 * (card[key] * (1 - card[key]) / samples) ** 0.5 - 0.02


def test_captioner_follows_prompts_about_large_pictures():
    model = AutoModelForImageTextToText.from_pretrained(resolve("tiny:captioner"), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(resolve("tiny:captioner"))
    square = world.Object("red", "square", 0.25, 0.5, 0.15)
    scene = world.Scene((square, world.Object("blue", "triangle", 0.75, 0.5, 0.15)))
    told = [
        captioner.caption(model, processor, [render(scene, 640)], p)[0]
        for p in world.CAPTION_PROMPTS.values()
    ]
    assert [world.parse(t).canonical() for t in told] == [
        world.summarise(scene, s).canonical() for s in world.STYLES
    ]


@pytest.mark.parametrize("part", PARTS)
def test_measured_quality_and_card_lie_beside_the_weights(part):
    record = json.loads((_WEIGHTS / part / "quality.json").read_text())
    assert record["quality"] and record["minutes"] < 45
    assert f"tiny:{part}" in (_WEIGHTS / "MODEL_CARD.md").read_text()


def test_parts_load_by_their_auto_classes_in_float32():
    models = (
        AutoModelForCausalLM.from_pretrained(resolve("tiny:llm")),
        SiglipModel.from_pretrained(resolve("tiny:siglip")),
        AutoModelForImageTextToText.from_pretrained(resolve("tiny:captioner")),
        AutoencoderKLWan.from_pretrained(resolve("tiny:vae"), torch_dtype=torch.float32),
    )
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}


def test_parts_are_small():
    assert sum(f.stat().st_size for part in PARTS for f in (_WEIGHTS / part).iterdir()) < 15e6


def test_tokenizer_knows_the_words_as_single_tokens_and_any_text_at_all():
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny:llm"))
    assert all(token in tokenizer.get_vocab() for token in llm.SPECIAL)
    for word in (*world.COLOURS, *world.SHAPES):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    odd = "Café Ünïcode \n\t 99% <b>"
    assert tokenizer.decode(tokenizer(odd, add_special_tokens=False)["input_ids"]) == odd


def test_flat_convolutions_equal_the_causal_ones_for_a_frame():
    torch.manual_seed(0)
    model = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
    frame = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = model.encode(frame).latent_dist.mean
        picture = model._decode(latents).sample
        with vae.single_frame():
            assert torch.allclose(model.encode(frame).latent_dist.mean, latents, atol=1e-5)
            assert torch.allclose(model._decode(latents).sample, picture, atol=1e-5)


def test_a_still_video_has_still_latents():
    model = AutoencoderKLWan.from_pretrained(resolve("tiny:vae"), torch_dtype=torch.float32).eval()
    scene = world.draw_scene(random.Random(0))
    frames = torch.tensor(np.asarray(render(scene, 64))).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(frames.repeat(1, 1, 5, 1, 1)).latent_dist.mean
        restored = model.decode(latents).sample
    assert latents.shape == (1, 16, 2, 8, 8) and restored.shape == (1, 3, 5, 64, 64)
    assert torch.allclose(latents[:, :, 0], latents[:, :, 1], atol=1e-4)
    assert torch.allclose(restored[:, :, 0], restored[:, :, 4], atol=1e-3)


def test_every_part_trains_and_is_saved_in_its_format(tmp_path):
    effort = 0.003
    llm.train(tmp_path / "llm", effort)
    siglip.train(tmp_path / "siglip", effort)
    vae.train(tmp_path / "vae", effort)
    captioner.train(tmp_path / "captioner", tmp_path / "siglip", tmp_path / "llm", effort)
    assert llm.evaluate(tmp_path / "llm", samples=4)["questions"] > 4
    assert siglip.evaluate(tmp_path / "siglip", samples=64)["pictures"] >= 32
    assert vae.evaluate(tmp_path / "vae", samples=4)["psnr_db"] > 5
    assert 0 <= captioner.evaluate(tmp_path / "captioner", samples=4)["full_exact"] <= 1
    for part in PARTS:
        names = {p.name for p in (tmp_path / part).iterdir()}
        shipped = {p.name for p in (_WEIGHTS / part).iterdir()} - {"quality.json"}
        assert names == shipped


def test_patch_labels_mark_where_objects_lie():
    labels = siglip.patch_labels([world.Scene((world.Object("green", "square", 0.25, 0.25, 0.12),))])
    kind = list(world.COLOURS).index("green") * 3 + world.SHAPES.index("square")
    assert labels.reshape(4, 4, 24)[:2, :2, kind].all() and labels.sum() == 4


def test_batches_cover_a_pool_and_repeat_with_the_seed():
    first, again = (np.concatenate(list(batches(64, 8, 8, seed=1))) for _ in range(2))
    assert np.array_equal(first, again) and sorted(first) == list(range(64))
    near = list(batches(64, 8, 8, seed=1, length=np.arange(64)))
    assert all(chunk.max() - chunk.min() == 7 for chunk in near)


def test_photographs_look_like_the_scene():
    scenes = [world.draw_scene(random.Random(i)) for i in range(3)]
    assert pictures(scenes, seed=0).shape == (3, 64, 64, 3)
    shot = np.asarray(photograph(scenes[0], random.Random(1))).astype(float)
    assert np.sqrt(((shot - np.asarray(render(scenes[0], 64))) ** 2).mean()) < 8


def test_question_documents_mark_answers():
    made = llm.question_document(world.draw_scene(random.Random(4)), random.Random(4))
    assert made[0][0].startswith("<|im_start|>") and all(
        text.endswith("<|im_end|>") for text, answer in made if answer
    )


def test_card_tells_every_measured_part(tmp_path):
    (tmp_path / "llm").mkdir()
    quality = {"questions_right": 0.97, "questions_right_chat_layout": 0.96}
    (tmp_path / "llm" / "quality.json").write_text(json.dumps({"quality": quality, "minutes": 4.0}))
    write_card(tmp_path)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert (
        "| text-only questions answered exactly | 0.970 | at least 0.95 |" in card and "tiny:vae" not in card
    )


def test_a_picture_of_any_mode_can_be_captioned():
    model = AutoModelForImageTextToText.from_pretrained(resolve("tiny:captioner"), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(resolve("tiny:captioner"))
    for mode in ("L", "RGBA", "P"):
        picture = Image.new("RGB", (100, 60), (235, 235, 235)).convert(mode)
        assert isinstance(captioner.caption(model, processor, [picture], "Name the shapes.")[0], str)
