"""What a model takes over from a checkpoint of another size: scale-up (section 3.2), distilled semantic layers.

A map says of every part whether it is kept or dropped; a report says what became of every tensor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from showo2.model import checkpoint, weights

if TYPE_CHECKING:
    from showo2.model.model import Showo2

Fate = Literal["kept", "new", "dropped", "misfit"]


@dataclass(frozen=True)
class TransferMap:
    """Prefixes of our parameters' names. Together `keep` and `drop` name every tensor of the checkpoint."""

    keep: tuple[str, ...]
    drop: tuple[str, ...]


# 1.5B -> 7B: another language model, and what maps into or out of its width is made new.
SCALE_UP = TransferMap(
    keep=("semantic.", "time_embed.", "flow_head.blocks.", "flow_head.final."),
    drop=("language_model.", "projector.", "fusion.", "time_project.", "flow_head.project."))
# The end of distillation, or the released file of pre-distilled layers: only S has learnt anything.
SEMANTIC_LAYERS = TransferMap(
    keep=("semantic.",),
    drop=("language_model.", "projector.", "fusion.", "time_embed.", "time_project.", "flow_head."))


@dataclass(frozen=True)
class Entry:
    """What became of one tensor; a shape is None where that side has no such tensor."""

    name: str
    fate: Fate
    checkpoint: tuple[int, ...] | None
    model: tuple[int, ...] | None


@dataclass(frozen=True)
class TransferReport:
    """Every tensor of the checkpoint and of the model.

    kept: copied. new: left as the model had it, from a pretrained part or its initialisation. dropped: the checkpoint's,
    as the map says. misfit: to be kept, but of another shape or missing on one side; or in no part of the map.
    """

    source: str
    entries: tuple[Entry, ...]

    def names(self, fate: Fate) -> list[str]:
        """Names of the tensors that met this fate."""
        return [entry.name for entry in self.entries if entry.fate == fate]

    def check(self) -> TransferReport:
        """The report itself; raises ValueError if any tensor does not fit."""
        misfits = [e for e in self.entries if e.fate == "misfit"]
        if misfits:
            first = ", ".join(f"{e.name} ({e.checkpoint} there, {e.model} here)" for e in misfits[:3])
            raise ValueError(f"{self.source}: {len(misfits)} tensors do not fit the model: {first}; give the model the "
                             "checkpoint's sizes, or drop these parts in the map")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file beside the run."""
        return asdict(self)

    def __str__(self) -> str:
        """A line for each part and fate: tensors and parameters."""
        tensors: Counter[tuple[str, str]] = Counter()
        parameters: Counter[tuple[str, str]] = Counter()
        for entry in self.entries:
            key = (_part(entry.name), entry.fate)
            tensors[key] += 1
            parameters[key] += prod(entry.model or entry.checkpoint or ())
        lines = [f"{part:20} {fate:8} {tensors[part, fate]:5} tensors {parameters[part, fate]:15,} parameters"
                 for part, fate in tensors]
        return "\n".join([f"from {self.source}:", *lines])


def transfer(model: Showo2, source: str | Path, plan: TransferMap) -> TransferReport:
    """Copy what `plan` keeps of `source` into `model`; whatever does not fit is left as it is, and reported.

    source: a model's folder, a weights file of ours or of the released code, a Hub id or a `tiny:` name. Raises
    ValueError where a flow head would be kept whose output order is not the model's.
    """
    path = weights.locate(source)
    if "flow_head.final.linear.weight".startswith(plan.keep):
        _check_order(model, path)
    state = checkpoint.read_state(path)
    own = model.state_dict()
    if checkpoint.HEAD in own and model.language_model.config.tie_word_embeddings:
        del own[checkpoint.HEAD]
    entries = []
    for name in [*own, *(name for name in state if name not in own)]:
        there = tuple(state[name].shape) if name in state else None
        here = tuple(own[name].shape) if name in own else None
        entries += [Entry(name, *found) for found in _fates(name, there, here, plan)]
    with torch.no_grad():
        for entry in entries:
            if entry.fate == "kept":
                own[entry.name].copy_(state[entry.name])
    return TransferReport(str(source), tuple(entries))


def _fates(name: str, there: tuple[int, ...] | None, here: tuple[int, ...] | None,
           plan: TransferMap) -> Iterator[tuple[Fate, tuple[int, ...] | None, tuple[int, ...] | None]]:
    """The fate of a tensor, or both fates of a name that is dropped from the checkpoint and new in the model."""
    if name.startswith(plan.keep):
        yield "kept" if there == here else "misfit", there, here
        return
    if there is not None:
        known = name.startswith(plan.drop)
        yield "dropped" if known else "misfit", there, None
    if here is not None:
        yield "new", None, here


def _part(name: str) -> str:
    first, second = name.split(".")[:2]
    return f"{first}.{second}" if first == "flow_head" else first


def _check_order(model: Showo2, path: Path) -> None:
    file = path / "config.json"
    order = json.loads(file.read_text()).get("order", "released") if file.is_file() else "released"
    if order != model.config.order:
        raise ValueError(f"{path} was trained with output order {order!r}, the model has {model.config.order!r}: a flow "
                         "head means nothing in the other order; give the model the checkpoint's")
