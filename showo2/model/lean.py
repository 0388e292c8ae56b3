"""Exact savings: cheap, elementwise work is done again in backward instead of kept for it, and a last block computes
only what somebody reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Elements of an activation from which its memory is worth the bookkeeping.
_WORTHWHILE = 2**19


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, of whose activations only the inputs are kept; for elementwise work.

    The recomputation ends at the last activation that backward needs, so a linear layer at the end of `function` does
    not run twice. In a compiled block the compiler chooses what to keep, and knows what is cheap.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or inputs[0].numel() < _WORTHWHILE:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    """down(act(gate(x)) * up(x)): of four wide activations, gate and up are kept."""
    return recomputed(lambda gate, up: mlp.down_proj(mlp.act_fn(gate) * up), mlp.gate_proj(x), mlp.up_proj(x))


def plain_mlp(mlp: Any, x: Tensor) -> Tensor:
    """fc2(act(fc1(x))): of two wide activations, one is kept."""
    return recomputed(lambda h: mlp.fc2(mlp.activation_fn(h)), mlp.fc1(x))


def recomputed_norm(norm: Any, x: Tensor) -> Tensor:
    """The module's own norm; of its activations, its input is kept."""
    return recomputed(super(type(norm), norm).forward, x)


def make_lean(layers: nn.ModuleList) -> None:
    """Give transformer blocks of Hugging Face models these savings, as far as they have the usual parts."""
    for layer in layers:
        for part in layer.children():
            kind: Any = type(part)
            if kind.__name__.endswith("RMSNorm"):
                part.__class__ = _lean(kind, recomputed_norm)
            elif hasattr(part, "gate_proj"):
                part.__class__ = _lean(kind, gated_mlp)
            elif hasattr(part, "fc2"):
                part.__class__ = _lean(kind, plain_mlp)


def trim_last(layers: nn.ModuleList) -> None:
    """Let the last block of a Hugging Face model take `omni_read` (rows of the flattened batch, mask), where it has the
    usual parts: with it, attention has that mask, and only these rows go on behind it. What the others hold is undefined.
    """
    last: Any = layers[-1]
    if {name for name, _ in last.named_children()} == _USUAL and hasattr(last.mlp, "gate_proj"):
        kind: Any = type(last)
        last.__class__ = _trimmed(kind)


_USUAL = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@cache
def _trimmed(kind: Any) -> Any:
    def forward(self: Any, hidden_states: Tensor, omni_read: tuple[Tensor, Any] | None = None, **options: Any) -> Tensor:
        if omni_read is None:
            return kind.forward(self, hidden_states, **options)
        rows, options["omni_mask"] = omni_read
        attended = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)[0]
        flat = (hidden_states + attended).flatten(0, 1)
        some = flat[rows]
        some = some + self.mlp(self.post_attention_layernorm(some))
        return flat.index_copy(0, rows, some).view_as(hidden_states)

    return type(f"Trimmed{kind.__name__}", (kind,), {"forward": forward})


@cache
def _lean(kind: Any, forward: Any) -> Any:
    """A class, not a forward of each module's own: by that a compiler would tell equal blocks apart, and compile each."""
    return type(f"Lean{kind.__name__}", (kind,), {"forward": forward})
