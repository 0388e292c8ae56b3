"""The paper's stages at 1.5B and 7B (arXiv 2506.15564, sections 3.2, 4.1 and 4.4) and the released configurations.

Every recipe is derived from an earlier one, so what stands here is what changes. Where paper and configuration files
differ, or neither gives a number, a comment says whose number is used. Global batches are those of 64 H100 (1.5B) and
128 H100 (7B).
"""

from dataclasses import replace
from typing import Any

from showo2.data.mixture import Entry
from showo2.train.recipe import NEW_PARTS, PARTS, Group, ModelParts, Parallel, Recipe

SIGLIP = "google/siglip-so400m-patch14-384"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
PARTS_1B = ModelParts(llm="Qwen/Qwen2.5-1.5B-Instruct", siglip=SIGLIP, vae=WAN)
PARTS_7B = ModelParts(llm="Qwen/Qwen2.5-7B-Instruct", siglip=SIGLIP, vae=WAN)

# Sizes of the parts by name, with 151,669 tokens: what is only planned needs no download.
SIZES: dict[str, dict[str, Any]] = {
    PARTS_1B.llm: {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
                   "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151_669,
                   "tie_word_embeddings": True},
    PARTS_7B.llm: {"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
                   "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 151_669,
                   "tie_word_embeddings": False},
    SIGLIP: {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304,
             "image_size": 384, "patch_size": 14},
}

# A replica a node of 8 GPUs: weights are gathered over NVLink, and only sums of gradients cross the network.
NODE = Parallel(shard=8, precision="bf16", compile=True)
# 8.9 B parameters with fp32 masters, gradients, average and moments are 179 GB: four nodes hold one copy.
FOUR_NODES = Parallel(shard=32, precision="bf16", recompute="cheap", compile=True)

_PROJECTIONS = ("projector.", "fusion.", "time_project.", "flow_head.project.")
_ALL_BUT_SEMANTIC = tuple(part for part in PARTS if part != "semantic.")
# Section 4.1: S 2e-6, everything else 1e-5. The released optimizer leaves out the time embedding, by accident.
_ALL = (Group(("semantic.",), 2e-6), Group(_ALL_BUT_SEMANTIC, 1e-5))


def _pairs(generate: int, caption: int) -> tuple[Entry, ...]:
    return (Entry("generate", "generate", "pair", samples=generate),
            Entry("caption", "caption", "pair", samples=caption))


def _instructions(generate: int, converse: int) -> tuple[Entry, ...]:
    return (Entry("generate", "generate", "pair", samples=generate),
            Entry("converse", "converse", "conversation", samples=converse))


def _tuned(recipe: Recipe, **changes: Any) -> Recipe:
    """A stage with 3 % of warm-up and a cosine (released configurations of stage 2)."""
    recipe = replace(recipe, schedule="cosine", **changes)
    return replace(recipe, warmup=recipe.steps * 3 // 100)


DISTILL = Recipe(
    # Section 3.2: batch 512, 2e-5 cosine, 200K steps, x_t noised with probability 0.3 in the last 20K. No code for
    # it is released.
    name="1.5b-distill",
    summary="semantic layers learn SigLIP's features from latents",
    start="parts", model=PARTS_1B, context=1024, parallel=NODE,
    mixture=(Entry("pictures", "distill", "pair", samples=512),),
    groups=(Group(("semantic.",), 2e-5),),
    schedule="cosine", steps=200_000, noised=0.3, noised_steps=20_000)

STAGE1A = Recipe(
    # 150K steps, 1e-4 constant after 2K of warm-up, alpha 0.2 (section 4.1); 6 + 2 samples a GPU (configuration).
    name="1.5b-stage1a",
    summary="projector, fusion, time embedding and flow head learn on 66M pairs; language model and S are frozen",
    start="checkpoint", model=PARTS_1B, context=1024, alpha=0.2, parallel=NODE,
    mixture=_pairs(384, 128),
    groups=(Group(NEW_PARTS, 1e-4),),
    schedule="constant", warmup=2_000, steps=150_000)

STAGE1B = replace(
    STAGE1A, name="1.5b-stage1b",
    summary="as 1a, on the 16M pairs of the high-quality selection",
    warmup=0, steps=40_000)

# 17 frames of 432x432 (section 4.1: 2 s, every 3rd frame).
CLIP = (5, 54, 54)

STAGE1_VIDEO = replace(
    # Context from the released configuration. The paper adds video "progressively"; shares and steps are ours, and how it
    # learns to go on from a picture (Table 7) it does not say: a quarter of the clips that are drawn have theirs given.
    STAGE1B, name="1.5b-stage1-video",
    summary="as 1b, with clips of 17 frames beside pictures",
    context=7006, parallel=replace(NODE, recompute="cheap"),
    mixture=(*_pairs(384, 128), Entry("generate-clips", "generate", "pair", samples=48, bucket=CLIP),
             Entry("animate-clips", "animate", "pair", samples=16, bucket=CLIP),
             Entry("caption-clips", "caption", "pair", samples=64, bucket=CLIP)),
    steps=20_000)

STAGE1_INTERLEAVED = replace(
    STAGE1_VIDEO, name="1.5b-stage1-interleaved",
    summary="as 1-video, with OmniCorpus and VIST beside",
    mixture=(*STAGE1_VIDEO.mixture, Entry("documents", "tell", "interleaved", samples=64)))

STAGE2A = _tuned(
    # 558K LLaVA captions at 4 a GPU: one epoch is 2,180 steps. The image alone is the question.
    STAGE1B, name="1.5b-stage2a",
    summary="fusion aligns on LLaVA's 558K captions beside generation",
    model=replace(PARTS_1B, conversation="pretrain"), alpha=1.0,
    mixture=_instructions(256, 256),
    groups=(Group(("fusion.",), 5e-5),), steps=2_180)

STAGE2B = _tuned(
    # Stage 2 takes 35K steps and 9M instructions in all; what 2a and 2c leave is this stage's.
    STAGE2A, name="1.5b-stage2b",
    summary="everything trains on LLaVA-OneVision stage 1.5 and DenseFusion-1M beside generation",
    model=PARTS_1B, groups=_ALL, steps=20_320)

STAGE2C = _tuned(
    # 3.2M instructions at 256 a step.
    STAGE2B, name="1.5b-stage2c",
    summary="everything trains on LLaVA-OneVision's 3.2M single images beside generation",
    steps=12_500)

HIGH_512 = replace(
    # Resolutions and contexts from the released configurations; neither source gives batch, steps or schedule.
    STAGE2C, name="1.5b-high512",
    summary="higher resolution and text-rich pictures, 512 px",
    model=replace(PARTS_1B, size=512), context=1280,
    groups=(Group(PARTS, 1e-5),), schedule="constant", warmup=0, steps=20_000)

HIGH_1024 = replace(
    HIGH_512, name="1.5b-high1024",
    summary="the same at 1024 px",
    model=replace(PARTS_1B, size=1024), context=4352, parallel=replace(NODE, recompute="cheap"),
    mixture=_instructions(64, 64))

STORY_WARMUP = replace(
    # Section 4.4: VIST, up to 4 pictures, 2 a GPU; 40K steps of the new parts, then 50K of everything at a lower rate
    # (ours: that of stage 2).
    STAGE2C, name="1.5b-story-warmup",
    summary="storytelling: the new parts learn on VIST's picture stories",
    context=4352, alpha=0.2, parallel=replace(NODE, recompute="cheap"),
    mixture=(Entry("stories", "tell", "interleaved", samples=128),),
    groups=STAGE1A.groups, schedule="constant", warmup=0, steps=40_000)

STORY = replace(STORY_WARMUP, name="1.5b-story", summary="storytelling: everything trains", groups=_ALL, steps=50_000)

ALIGN_7B = Recipe(
    # Section 4.1: flow head, time embedding and S of the small model are carried over; 3K steps, 2K of warm-up.
    name="7b-align",
    summary="scale-up: a larger language model learns to use the small model's flow head",
    start="transfer", model=PARTS_7B, context=1024, alpha=0.2, parallel=FOUR_NODES,
    mixture=_pairs(384, 128),
    groups=(Group(_PROJECTIONS, 1e-4),),
    schedule="constant", warmup=2_000, steps=3_000)

STAGE1A_7B = replace(
    ALIGN_7B, name="7b-stage1a",
    summary="as 1.5b-stage1a",
    start="checkpoint", groups=(Group(NEW_PARTS, 1e-4),), steps=150_000)

STAGE1B_7B = replace(STAGE1A_7B, name="7b-stage1b", summary="as 1.5b-stage1b", warmup=0, steps=40_000)


def _at_7b(recipe: Recipe) -> Recipe:
    """A stage 2 recipe at 7B: 2 + 2 samples on each of 128 GPUs (the configurations also have 2 + 4)."""
    return replace(recipe, name=recipe.name.replace("1.5b", "7b"), summary=f"as {recipe.name}", parallel=FOUR_NODES,
                   model=replace(PARTS_7B, conversation=recipe.model.conversation))


STAGE2A_7B, STAGE2B_7B, STAGE2C_7B = map(_at_7b, (STAGE2A, STAGE2B, STAGE2C))

PAPER = (DISTILL, STAGE1A, STAGE1B, STAGE1_VIDEO, STAGE1_INTERLEAVED, STAGE2A, STAGE2B, STAGE2C, HIGH_512, HIGH_1024,
         STORY_WARMUP, STORY, ALIGN_7B, STAGE1A_7B, STAGE1B_7B, STAGE2A_7B, STAGE2B_7B, STAGE2C_7B)
