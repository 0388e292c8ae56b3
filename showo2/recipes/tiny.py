"""The laptop's ladder: the paper's stages on the world of shapes, 64x64 pictures, parts of under 2 M parameters.

Sizes and steps are chosen for two CPU cores; rates and mixtures are those at which the small model learns, the
division into stages (what starts from what, what trains) is the paper's.
"""

from dataclasses import replace

from showo2.data.mixture import Entry
from showo2.model import FlowHeadConfig
from showo2.train.recipe import NEW_PARTS, PARTS, Group, ModelParts, Parallel, Recipe

PARTS_64 = ModelParts(
    llm="tiny:llm", siglip="tiny:siglip", vae="tiny:vae", grid=4, order="patch", conversation="plain", size=64,
    gains=(30.0, 10.0),
    flow=FlowHeadConfig(width=128, layers=3, heads=4, kv_heads=2, head_dim=32, intermediate=384))

DISTILL = Recipe(
    name="tiny-distill",
    summary="semantic layers learn SigLIP's features from latents (section 3.2, before stage 1)",
    start="parts", model=PARTS_64, context=32,
    mixture=(Entry("pictures", "distill", "pair", samples=64),),
    groups=(Group(("semantic.",), 2e-3),),
    schedule="cosine", warmup=50, steps=400, noised_steps=100, ema=0.99, checkpoint_every=200,
    parallel=Parallel(precision="autocast"))

STAGE1 = Recipe(
    name="tiny-stage1",
    summary="projector, fusion, time embedding and flow head learn on pairs; language model and S are frozen",
    start="checkpoint", model=PARTS_64, context=96, alpha=0.2,
    mixture=(Entry("generate", "generate", "pair", samples=48), Entry("caption", "caption", "pair", samples=16)),
    groups=(Group(NEW_PARTS, 2e-3),),
    schedule="constant", warmup=50, steps=200, ema=0.99, checkpoint_every=200,
    parallel=Parallel(precision="autocast"))

STAGE2 = replace(
    STAGE1, name="tiny-stage2",
    summary="everything trains, on conversations, captions and generation",
    # With the paper's weight of 1 the text's gradients drown the pictures': after 5,000 steps colours were still not
    # bound to objects, which with 0.1 they are after 1,500 (docs/log.md).
    alpha=0.2, betas=(0.9, 0.99),
    # How two things lie is learned from many conversations a step: of 22 the gradient is mostly noise (docs/log.md).
    mixture=(Entry("generate", "generate", "pair", samples=40),
             Entry("caption", "caption", "pair", samples=4),
             Entry("converse", "converse", "conversation", samples=36)),
    groups=(Group(PARTS, 2e-3),),
    schedule="cosine", steps=3500, ema=0.998, checkpoint_every=500)

# The larger base model: width 192, 6 layers. Where only what joins it to the flow head is trained, as in the paper, the
# larger model binds colours to objects no sooner than the small one did; taught by the small one, its flow loss falls as
# far in a sixth of the steps. What it has learned it loses again at the small model's rates. Taught for half as long it
# draws worse than its teacher, and the stages after it need longer to mend that than teaching does (docs/log.md).
ALIGN_LARGE = replace(
    STAGE2, name="tiny-7b-align",
    summary="scale-up: a larger language model learns from the small model what to give its flow head",
    start="transfer", model=replace(PARTS_64, llm="tiny:llm-large"), taught=15.0, steps=1600)

STAGE1_LARGE = replace(
    STAGE1, name="tiny-7b-stage1",
    summary="as tiny-stage1, with the larger language model",
    model=ALIGN_LARGE.model, groups=(Group(NEW_PARTS, 2e-4),), steps=100)

STAGE2_LARGE = replace(
    STAGE2, name="tiny-7b-stage2",
    summary="as tiny-stage2, with the larger language model",
    model=ALIGN_LARGE.model, groups=(Group(PARTS, 8e-4),), steps=4000)

# What needs other data than pictures and conversations follows after the chain that needs no more.
CLIP = (5, 8, 8)

VIDEO = replace(
    STAGE1, name="tiny-stage1-video",
    summary="as tiny-stage1, with clips of 17 frames beside pictures",
    mixture=(*STAGE1.mixture, Entry("generate-clips", "generate", "pair", samples=8, bucket=CLIP),
             Entry("caption-clips", "caption", "pair", samples=4, bucket=CLIP)))

INTERLEAVED = replace(
    VIDEO, name="tiny-stage1-interleaved",
    summary="as tiny-stage1-video, with stories beside",
    context=192, mixture=(*VIDEO.mixture, Entry("stories", "tell", "interleaved", samples=8)))

UNIFIED = replace(
    STAGE2, name="tiny-unified",
    summary="one model for all (section 4.4): everything trains, on clips, questions about them and stories beside what stage 2 had",
    context=192,
    mixture=(Entry("generate", "generate", "pair", samples=16),
             Entry("caption", "caption", "pair", samples=3),
             Entry("converse", "converse", "conversation", samples=16),
             Entry("stories", "tell", "interleaved", samples=8),
             Entry("generate-clips", "generate", "pair", samples=10, bucket=CLIP),
             Entry("animate-clips", "animate", "pair", samples=6, bucket=CLIP),
             Entry("caption-clips", "caption", "pair", samples=2, bucket=CLIP),
             Entry("converse-clips", "converse", "conversation", samples=6, bucket=CLIP)),
    groups=(Group(PARTS, 8e-4),), steps=4000)

HIGH_96 = replace(STAGE2, name="tiny-high96", summary="as tiny-stage2, at 96 px", model=replace(PARTS_64, size=96), steps=300)

TINY = (DISTILL, STAGE1, STAGE2, ALIGN_LARGE, STAGE1_LARGE, STAGE2_LARGE, VIDEO, INTERLEAVED, UNIFIED, HIGH_96)
