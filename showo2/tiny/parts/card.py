"""The model card beside the shipped parts."""

import json
from pathlib import Path

_INTRODUCTION = """# The parts of the world of shapes

Small models, trained from nothing on `showo2.tiny.world` by `python -m showo2.tiny.parts --out DIR` (two cores, no
GPU). Measured on scenes that training pictures and texts do not hold, half of the pictures being large JPEGs made
small. Only the captioner, a tool and not what is judged, trains on scenes of every kind: it is measured on pictures
that were drawn anew. Weights are stored as float16 and used as float32. Apache-2.0, like the code; they know nothing
but coloured shapes."""
_PARTS = {
    "vae": (
        "Wan VAE",
        """`diffusers.AutoencoderKLWan`: 64x64 pixels to 16 channels of 8x8, trained on single frames; on video it works
frame by frame. `latents_mean` and `latents_std` are measured: normalised latents have mean 0 and deviation 1.""",
    ),
    "siglip": (
        "SigLIP",
        "`transformers.SiglipModel`: 16 patches of 16x16 pixels, 4 vision and 2 text layers of width 128.",
    ),
    "llm": (
        "Language model",
        """`transformers.Qwen2ForCausalLM` with a byte-level BPE tokenizer: 4 layers of width 128, at most 512 tokens,
Show-o2's special ones among them; trained on captions, paraphrases and questions about captions.""",
    ),
    "llm-large": (
        "Larger language model",
        "The same with 6 layers of width 192 and the same tokenizer: what the scale-up goes over to.",
    ),
    "captioner": (
        "Captioner",
        """`transformers.LlavaForConditionalGeneration`: SigLIP's vision tower and the language model, trained together;
it follows the three prompts of `showo2.tiny.world.CAPTION_PROMPTS`.""",
    ),
    "reference": (
        "Show-o2",
        """A trained Show-o2 of 2.4 M parameters, the default of `jobs.generate` and `jobs.evaluate`: what the demo makes
of a larger world, then trained on clips, questions about them and stories too. Judged by `jobs.evaluate` on held-out prompts and questions (docs/evaluation.md), guidance 4, 20 points.""",
    ),
}
# What a measured number means, and the least that is asked of it.
_MEANING: dict[tuple[str, str], tuple[str, float | None]] = {
    ("vae", "psnr_db"): ("mean PSNR, dB", 28.0),
    ("vae", "psnr_worst_db"): ("PSNR of the worst picture, dB", None),
    ("vae", "latent_mean"): ("mean of normalised latents", None),
    ("vae", "latent_std"): ("deviation of normalised latents", None),
    ("vae", "nearest_colours"): ("squared distance per element of the two nearest colours", None),
    ("siglip", "right_of_32"): ("own caption found among 32", 0.90),
    ("llm", "questions_right"): ("text-only questions answered exactly", 0.95),
    ("llm", "questions_right_chat_layout"): ("the same in Qwen's chat layout", None),
    ("llm-large", "questions_right"): ("text-only questions answered exactly", 0.95),
    ("llm-large", "questions_right_chat_layout"): ("the same in Qwen's chat layout", None),
    ("captioner", "colours_right"): ("captions with all colours right", 0.95),
    ("captioner", "shapes_right"): ("captions with all shapes right", 0.95),
    ("captioner", "relations_right"): ("captions with the relation or place right", 0.95),
    ("captioner", "full_exact"): ("captions right in everything: full", None),
    ("captioner", "colours_exact"): ("the same: objects and colours", None),
    ("captioner", "shapes_exact"): ("the same: shapes", None),
    ("reference", "pictures"): ("pictures that show what was asked, mean of the categories", 0.95),
    ("reference", "single_object"): ("one object at a place", None),
    ("reference", "colors"): ("one object in a colour", None),
    ("reference", "counting"): ("two to four equal objects", None),
    ("reference", "position"): ("two objects in a relation", None),
    ("reference", "color_attribution"): ("two objects, each in its colour", None),
    ("reference", "two_objects"): ("two kinds of objects, numbers told", None),
    ("reference", "questions"): ("questions answered exactly, mean of the kinds", 0.95),
    ("reference", "colour"): ("what colour", None),
    ("reference", "shape"): ("what shape", None),
    ("reference", "place"): ("where", None),
    ("reference", "count"): ("how many", None),
    ("reference", "relation"): ("is one left of, right of, above or below the other (half are yes)", None),
    ("reference", "clips"): ("clips of 17 frames in which the object moves as told", 0.9),
    ("reference", "animations"): ("the same, beginning with a given picture", 0.9),
    ("reference", "clip_questions"): ("questions about clips answered exactly, mean of the kinds", 0.9),
    ("reference", "stories"): ("stories that tell of one object and show it in every picture", 0.9),
}


def write_card(folder: Path) -> None:
    """Write `MODEL_CARD.md` from the `quality.json` of every part that lies in `folder`."""
    lines = _INTRODUCTION.splitlines()
    for part, (title, text) in _PARTS.items():
        record = folder / part / "quality.json"
        if record.exists():
            told = json.loads(record.read_text())
            size = sum(path.stat().st_size for path in (folder / part).iterdir()) / 1e6
            lines += ["", f"## {title} (`tiny:{part}`)", "", text, "", *_table(part, told)]
            lines += ["", f"{size:.1f} MB. {told.get('note', '')}".strip()]
    (folder / "MODEL_CARD.md").write_text("\n".join(lines) + "\n")


def _table(part: str, record: dict) -> list[str]:
    rows = ["| measured | value | asked |", "|---|---|---|"]
    for (owner, key), (meaning, asked) in _MEANING.items():
        if owner == part:
            value = record["quality"][key]
            missed = ": missed" if asked and value < asked else ""
            rows.append(f"| {meaning} | {value:.3f} | {f'at least {asked:g}{missed}' if asked else ''} |")
    return [*rows, f"| training, minutes | {record['minutes']:g} | |"]
