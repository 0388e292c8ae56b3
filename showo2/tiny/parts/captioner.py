"""The captioner: LLaVA from SigLIP's vision tower and the language model, for three kinds of captions.

As SigLIP's, its vision tower also learns to name what lies in each patch; the head for that is not kept.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    SiglipVisionModel,
)

from showo2.tiny.parts.common import SIZE, batches, draw_scenes, fit, halve, pictures, share, to_pixels
from showo2.tiny.parts.siglip import image_processor, patch_head, patch_labels
from showo2.tiny.world import (
    BACKGROUND,
    CAPTION_PROMPTS,
    STYLES,
    Description,
    Scene,
    describe,
    parse,
    summarise,
)

_BATCH = 64
_MIX = (15, 25, 20, 40)  # scenes of three and four objects are the hardest to tell
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|im_start|>' }}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
)


def build(siglip: Path, llm: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Assemble a LLaVA: vision tower and language model as trained, the projector new."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llm, padding_side="left")
    language = Qwen2ForCausalLM.from_pretrained(llm, dtype=torch.float32)
    tower = SiglipVisionModel.from_pretrained(siglip, dtype=torch.float32)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=40,
    )
    processor = LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=_TEMPLATE,
    )
    return model, processor


def prompt_text(processor: LlavaProcessor, prompt: str) -> str:
    """The text that the model reads for a prompt about one picture."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def train(folder: Path, siglip: Path, llm: Path, effort: float = 1.0, seed: int = 4) -> None:
    """Train all of it and save; `effort` scales the work."""
    torch.manual_seed(seed)
    model, processor = build(siglip, llm)
    # Any scene: the captioner stands for a tool from outside, which has seen the world.
    scenes = draw_scenes(share(40_000, effort), seed, held_out=None, mix=_MIX)
    images = _squashed(pictures(scenes, seed, photographs=0.4), seed)
    rows = {s: _rows(processor, scenes, s) for s in STYLES}
    steps, pad = round(6_000 * effort), processor.tokenizer.pad_token_id
    # The other kind's backward pass in bf16 takes three times as long on a CPU.
    model.set_attn_implementation("eager")
    labels, dense = patch_labels(scenes), patch_head(model.config.vision_config.hidden_size)
    order = batches(len(images), _BATCH, steps, seed)

    def loss_of(step: int) -> Tensor:
        chosen = next(order)
        style = ("full", "colours", "shapes")[step % 3]
        prefix, answers = rows[style]
        longest = max(len(answers[i]) for i in chosen)
        ids = torch.tensor([prefix + answers[i] + [pad] * (longest - len(answers[i])) for i in chosen])
        pixels = to_pixels(images[chosen], noise=2.0)
        seen: list[Tensor] = []
        hook = model.model.vision_tower.register_forward_hook(
            lambda _, __, out: seen.append(out.last_hidden_state)
        )
        logits = model(input_ids=ids, pixel_values=pixels, logits_to_keep=longest + 1).logits[:, :-1]
        hook.remove()
        named = F.binary_cross_entropy_with_logits(dense(seen[0]).float(), labels[chosen])
        told = F.cross_entropy(logits.float().flatten(0, 1), ids[:, len(prefix) :].flatten(), ignore_index=pad)
        return told + 2 * named

    fit("captioner", nn.ModuleList([model, dense]), steps, 1.5e-3, loss_of, weight_decay=0.01, bf16=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    halve(folder)


def _squashed(images: np.ndarray, seed: int) -> np.ndarray:
    """Half of the pictures (N, 64, 64, 3) as the processor makes them of wide and of high ones, which it does not crop."""
    rng, made = random.Random(seed), images.copy()
    for i in rng.sample(range(len(images)), len(images) // 2):
        side = rng.randint(SIZE // 2, SIZE - 4)
        size = (side, SIZE) if rng.random() < 0.5 else (SIZE, side)
        canvas = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
        squashed = Image.fromarray(images[i]).resize(size, Image.Resampling.BICUBIC)
        canvas.paste(squashed, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
        made[i] = np.asarray(canvas)
    return made


def _rows(processor: LlavaProcessor, scenes: list[Scene], style: str) -> tuple[list[int], list[list[int]]]:
    """Ids of a style's prompt with its picture's places, and of every scene's caption with the end token."""
    tokenizer = processor.tokenizer
    places = "<image>" * ((image_processor().size["height"] // processor.patch_size) ** 2)
    prefix = prompt_text(processor, CAPTION_PROMPTS[style]).replace("<image>", places)
    texts = [describe(scene, style) + tokenizer.eos_token for scene in scenes]
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tokenizer(prefix, add_special_tokens=False)["input_ids"], answers


@torch.no_grad()
def caption(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    prompt: str,
) -> list[str]:
    """Greedy captions of pictures of any size for one prompt."""
    text = prompt_text(processor, prompt)
    inputs = processor(images=list(images), text=[text] * len(images), return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [t.strip() for t in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@torch.no_grad()
def evaluate(folder: Path, samples: int = 512) -> dict[str, float]:
    """Shares of colours, shapes and relations or places told rightly about held-out pictures; exact captions by style."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    scenes = draw_scenes(samples, 90_004, held_out=None)
    shots = [Image.fromarray(image) for image in _squashed(pictures(scenes, 90_004, photographs=0.5), 90_004)]
    told: dict[str, list[str]] = {}
    for style in STYLES:
        chunks = [shots[i : i + 64] for i in range(0, samples, 64)]
        told[style] = [
            t for chunk in chunks for t in caption(model, processor, chunk, CAPTION_PROMPTS[style])
        ]
    scores = {f"{style}_exact": _exact(scenes, told[style], style) for style in STYLES}
    return scores | _facts(scenes, told["full"]) | {"pictures": samples}


def _exact(scenes: list[Scene], told: list[str], style: str) -> float:
    """Share of captions that say the same as the true one, in whatever order."""
    right = [_read(text) == summarise(s, style).canonical() for s, text in zip(scenes, told, strict=True)]
    return sum(right) / len(right)


def _read(text: str) -> Description | None:
    try:
        return parse(text).canonical()
    except ValueError:
        return None


def _facts(scenes: list[Scene], told: list[str]) -> dict[str, float]:
    """By kind of fact, the share of captions that have it right."""
    right: dict[str, list[bool]] = {"colours_right": [], "shapes_right": [], "relations_right": []}
    for scene, text in zip(scenes, told, strict=True):
        truth, said = summarise(scene).canonical(), _read(text)
        for kind, values in right.items():
            if kind == "relations_right" and not (truth.relation or truth.place):
                continue
            values.append(said is not None and _fact(kind, said) == _fact(kind, truth))
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def _fact(kind: str, description: Description) -> object:
    if kind == "relations_right":
        return description.relation, description.place
    attribute = "colour" if kind == "colours_right" else "shape"
    return sorted(str(getattr(g, attribute)) for g in description.groups for _ in range(g.count))
