"""SigLIP: pictures and captions in one space, with a sigmoid for every pair of a batch.

While it trains, a linear head also names what lies in each patch (a dense loss, as SigLIP 2 and SILC add one): without
it the contrast alone needs far more pairs to find out that there are objects. The head is not kept.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from showo2.tiny.parts.common import SIZE, batches, draw_scenes, fit, halve, pictures, share, to_pixels
from showo2.tiny.parts.llm import make_tokenizer
from showo2.tiny.world import COLOURS, SHAPES, STYLES, Scene, describe, phrase, summarise

_BATCH = 64
_WORDS = 20  # the text tower's fixed length in tokens
_CANDIDATES = 32
_PATCH = 16
_GRID = SIZE // _PATCH
_COVER = 0.2  # of a patch's side, along both axes: an object that reaches this far into a patch lies in it


def image_processor() -> SiglipImageProcessorPil:
    """Any picture to 64x64, bicubic, in [-1, 1]."""
    return SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})


def build(tokenizer: PreTrainedTokenizerFast) -> SiglipModel:
    """An untrained SigLIP: 4x4 patches of 16 px; 4 vision and 2 text layers of width 128."""
    tower = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _WORDS,
        "num_hidden_layers": 2,
        "projection_size": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": SIZE, "patch_size": _PATCH, "num_hidden_layers": 4}
    model = SiglipModel(SiglipConfig(text_config=tower | text, vision_config=tower | vision))
    with torch.no_grad():
        model.logit_scale.fill_(float(np.log(10.0)))
        model.logit_bias.fill_(-5.0)
    return model


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(B, 20) int64: each text and its end token, padded on the right to the text tower's fixed length."""
    ended = [text + tokenizer.eos_token for text in texts]
    padding = {"padding": "max_length", "max_length": _WORDS, "truncation": True}
    return tokenizer(ended, add_special_tokens=False, return_tensors="pt", **padding)["input_ids"]


def meaning(scene: Scene, style: str = "full") -> str:
    """A caption in one fixed wording: `a left of b` and `b right of a` are true of the same pictures."""
    return phrase(summarise(scene, style).canonical())


def patch_head(width: int) -> nn.Linear:
    """A new head that names what lies in a patch, one logit for each colour and shape."""
    return nn.Linear(width, len(COLOURS) * len(SHAPES))


def patch_labels(scenes: list[Scene]) -> Tensor:
    """(N, 16, 24) float: 1 where an object of a colour and shape lies in a patch; patches in row-major order."""
    return torch.from_numpy(np.stack([_patch_labels(scene) for scene in scenes]))


def _patch_labels(scene: Scene) -> np.ndarray:
    labels = np.zeros((_GRID, _GRID, len(COLOURS) * len(SHAPES)), dtype=np.float32)
    edges = np.arange(_GRID)
    for thing in scene.objects:
        kind = list(COLOURS).index(thing.colour) * len(SHAPES) + SHAPES.index(thing.shape)
        inside = []
        for centre in (thing.y, thing.x):
            low, high = (centre - thing.r) * _GRID, (centre + thing.r) * _GRID
            inside.append(np.minimum(high, edges + 1) - np.maximum(low, edges) > _COVER)
        labels[np.outer(*inside), kind] = 1
    return labels.reshape(_GRID * _GRID, -1)


def train(folder: Path, effort: float = 1.0, seed: int = 3) -> None:
    """Train and save; `effort` scales the work."""
    torch.manual_seed(seed)
    tokenizer, scenes = make_tokenizer(), draw_scenes(share(30_000, effort), seed)
    images = pictures(scenes, seed)
    ids = {style: tokens(tokenizer, [describe(scene, style) for scene in scenes]) for style in STYLES}
    meanings = {style: np.array([meaning(scene, style) for scene in scenes]) for style in STYLES}
    labels = patch_labels(scenes)
    model, steps = build(tokenizer), round(2_200 * effort)
    dense = patch_head(model.config.vision_config.hidden_size)
    order = batches(len(images), _BATCH, steps, seed)

    def loss_of(step: int) -> Tensor:
        chosen = next(order)
        # One style a batch, so that no caption of one picture is a weaker, true caption of another.
        style = ("full", "full", "colours", "full", "shapes")[step % 5]
        output = model(pixel_values=to_pixels(images[chosen], noise=2.0), input_ids=ids[style][chosen])
        said = meanings[style][chosen]
        same = torch.from_numpy(said[:, None] == said[None]).float()
        contrast = F.binary_cross_entropy_with_logits(output.logits_per_image, same, reduction="sum") / len(
            chosen
        )
        named = dense(output.vision_model_output.last_hidden_state)
        return contrast + 10 * F.binary_cross_entropy_with_logits(named, labels[chosen])

    fit("siglip", nn.ModuleList([model, dense]), steps, 1e-3, loss_of, weight_decay=0.01)
    model.save_pretrained(folder)
    SiglipProcessor(image_processor(), tokenizer).save_pretrained(folder)
    halve(folder)


@torch.no_grad()
def evaluate(folder: Path, samples: int = 1024) -> dict[str, float]:
    """Share of held-out pictures whose own full caption scores best among 32 that mean different things."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = SiglipModel.from_pretrained(folder, dtype=torch.float32).eval()
    scenes = list({meaning(s): s for s in draw_scenes(2 * samples, 90_003, held_out=True)}.values())
    scenes = scenes[: min(samples, len(scenes)) // _CANDIDATES * _CANDIDATES]
    images = pictures(scenes, 90_003, photographs=0.5)
    right = 0
    for i in range(0, len(scenes), _CANDIDATES):
        texts = tokens(tokenizer, [describe(scene) for scene in scenes[i : i + _CANDIDATES]])
        pixels = to_pixels(images[i : i + _CANDIDATES])
        logits = model(pixel_values=pixels, input_ids=texts).logits_per_image
        right += int((logits.argmax(1) == torch.arange(_CANDIDATES)).sum())
    return {"right_of_32": right / len(scenes), "pictures": len(scenes)}
