"""Chunked cross-entropy: PyTorch's losses and gradients, in the memory of a chunk."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from showo2.model.cross_entropy import chunked_cross_entropy


@pytest.mark.parametrize("rows, chunk", [(10, 3), (10, 10), (1, 4), (0, 4)])
@pytest.mark.parametrize("frozen", ["", "hidden", "weight"])
def test_losses_and_gradients_are_those_of_whole_logits(rows, chunk, frozen):
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 6), torch.randn(17, 6)
    labels = torch.randint(0, 17, (rows,))
    found = []
    for loss in (lambda h, w: chunked_cross_entropy(h, w, labels, chunk),
                 lambda h, w: F.cross_entropy(h @ w.T, labels, reduction="sum")):
        h, w = hidden.clone().requires_grad_(frozen != "hidden"), weight.clone().requires_grad_(frozen != "weight")
        total = loss(h, w)
        (0.3 * total).backward()
        found.append([total.detach(), *(x.grad for x in (h, w) if x.requires_grad)])
    torch.testing.assert_close(found[0], found[1])


def test_half_precision_sums_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(600, 8), torch.randn(50, 8)
    labels = torch.randint(0, 50, (600,))
    half = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    total = chunked_cross_entropy(*half, labels, 64)
    total.backward()
    wanted = F.cross_entropy((half[0] @ half[1].T).float(), labels, reduction="sum")
    assert total.dtype == torch.float32 and half[1].grad.dtype == torch.bfloat16
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0)


def peak_bytes(step) -> int:
    """Most bytes that a step holds at once beyond what was there before, by PyTorch's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = most = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_logits_of_the_whole_sequence_never_exist():
    rows, vocabulary, chunk = 256, 4096, 32
    hidden, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows,))
    whole = rows * vocabulary * 4
    chunked = peak_bytes(lambda: chunked_cross_entropy(hidden, weight, labels, chunk).backward())
    plain = peak_bytes(lambda: F.cross_entropy(hidden @ weight.T, labels, reduction="sum").backward())
    assert chunked < whole / 2 < whole < plain
