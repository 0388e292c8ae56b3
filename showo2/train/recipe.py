"""What a recipe is: one stage of training, as data. `dataclasses.replace` derives one from another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from showo2.data.mixture import Entry
from showo2.data.order import WINDOW
from showo2.flow import Order
from showo2.model import FlowHeadConfig

# Every parameter starts with one of these.
PARTS = ("language_model.", "semantic.", "projector.", "fusion.", "time_embed.", "time_project.", "flow_head.")
NEW_PARTS = ("projector.", "fusion.", "time_embed.", "time_project.", "flow_head.")


@dataclass(frozen=True)
class ModelParts:
    """The pretrained parts of a new model, and the sizes of what is new.

    llm, siglip, vae: folders, Hub ids or `tiny:` names. grid: side of the position table in visual tokens.
    order: of the flow head's output pixels. conversation: template of question answering. size: picture side in pixels.
    gains: of the projector's half of a new fusion's input, and of its output (`model.Fusion.amplify`).
    """

    llm: str
    siglip: str
    vae: str
    flow: FlowHeadConfig = field(default_factory=FlowHeadConfig)
    grid: int = 27
    order: Order = "released"
    conversation: str = "chat"
    size: int = 432
    gains: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Parallel:
    """How a model lies on the workers and is computed. Only `precision` changes results, by its rounding."""

    shard: int = 0
    """workers that share one copy of the weights, each such set being a replica (HSDP); 0: all of them"""
    precision: Literal["fp32", "autocast", "bf16"] = "fp32"
    """of what is computed: bf16 throughout, or (autocast) in matrix products only, where the processor has it; masters,
    gradient sums, optimizer and average are fp32"""
    recompute: Literal["nothing", "cheap", "blocks"] = "nothing"
    """in the backward pass: nothing, all but matrix products and attention, or whole blocks"""
    compile: bool = False
    """compile every transformer block"""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate: those whose name starts with one of `parts`."""

    parts: tuple[str, ...]
    lr: float


@dataclass(frozen=True)
class Recipe:
    """One stage of training."""

    name: str
    """name of the recipe that a run's folder remembers"""
    summary: str
    """a line for people"""
    start: Literal["parts", "checkpoint", "transfer"]
    """build the model from the parts in `model`, go on from --init, or build it and carry over what fits of --init"""
    model: ModelParts
    mixture: tuple[Entry, ...]
    """what a global batch is made of"""
    groups: tuple[Group, ...]
    """what trains, and how fast; everything else is frozen"""
    steps: int
    """optimizer steps"""
    context: int
    """tokens of a packed row"""
    alpha: float = 1.0
    """weight of the next-token loss beside the flow loss (equation 4)"""
    taught: float = 0.0
    """weight of what the model of a transfer learns from the model of --init: what to give the flow head; 0: nothing"""
    warmup: int = 0
    """steps of linear warm-up"""
    schedule: Literal["constant", "cosine"] = "constant"
    """learning rate after the warm-up; cosine falls to 0 at the last step"""
    caption_dropout: float = 0.1
    """share of generation samples without caption, for guidance"""
    noised: float = 0.3
    """share of distillation samples whose input is noised, in the last `noised_steps` steps (else t = 1)"""
    noised_steps: int = 0
    """see `noised`"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decays"""
    eps: float = 1e-8
    """AdamW's epsilon"""
    weight_decay: float = 0.0
    """AdamW's weight decay"""
    clip: float = 1.0
    """largest norm of the gradient"""
    ema: float = 0.9999
    """decay of the average of weights that is exported"""
    parallel: Parallel = field(default_factory=Parallel)
    """sharding, precision, recomputation, compilation"""
    accumulate: int = 1
    """micro-batches per rank and step; the update is the same for any number"""
    seed: int = 0
    """of the order, the noise and the new layers"""
    window: int = WINDOW
    """shards that an epoch mixes at a time; two windows of remote shards should fit the cache"""
    readers: int = 0
    """processes of each rank that prepare batches; 0: a thread. The batches are the same"""
    blocklist: str = ""
    """file of uids, one a line, that are left out of the batches"""
    max_skipped: int = 20
    """steps with a non-finite loss or gradient that a run survives"""
    max_damaged: int = 1000
    """unreadable rows that a run survives"""
    spike: float = 2.0
    """times the mean of the last 100 losses; four losses above that are told as a spike. 0: they are not"""
    hang_s: float = 1800.0
    """seconds without a finished step after which every rank writes its stacks and ends"""
    checkpoint_every: int = 1000
    """steps between checkpoints"""
    keep: int = 3
    """checkpoints that stay"""
    log_every: int = 10
    """steps between lines of metrics"""

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.mixture]
        if len(set(names)) != len(names):
            raise ValueError(f"recipe {self.name}: mixture entries share a name: {names}")
        if self.distills and len({entry.task for entry in self.mixture}) > 1:
            raise ValueError(f"recipe {self.name}: distillation does not mix with other tasks")
        if self.taught and (self.start != "transfer" or self.distills):
            raise ValueError(f"recipe {self.name}: only what starts from a transfer, and draws, can be taught by it")
        unknown = [p for g in self.groups for p in g.parts if not p.startswith(PARTS)]
        if unknown:
            raise ValueError(f"recipe {self.name}: no parameters are named {unknown}; parts are {', '.join(PARTS)}")
        for name in ("steps", "context", "accumulate", "checkpoint_every", "keep", "log_every", "batch", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe {self.name}: {name} is {getattr(self, name)}; need 1 or more")

    @property
    def distills(self) -> bool:
        """Whether this stage trains the semantic layers against SigLIP."""
        return any(entry.task == "distill" for entry in self.mixture)

    @property
    def batch(self) -> int:
        """Samples of a global batch."""
        return sum(entry.samples for entry in self.mixture)

    @property
    def bucket(self) -> tuple[int, int, int]:
        """Latent frames, height and width of the pictures that this stage reads."""
        return 1, self.model.size // 8, self.model.size // 8
