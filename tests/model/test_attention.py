"""Omni-attention: the dense mask, SDPA (whole rows, documents) and compiled FlexAttention against a loop that says the rule."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo2.model.attention import BLOCK, attend, block_mask, dense_mask, document_mask


def allowed(doc, span, q, k) -> bool:
    """The rule of section 3.1, one pair at a time."""
    if doc[q] != doc[k]:
        return False
    return k <= q or (span[q] > 0 and span[q] == span[k])


def reference(q, k, v, doc, span):
    """Softmax attention, one query at a time."""
    out = torch.zeros_like(q)
    groups = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for i in range(q.shape[2]):
            seen = [j for j in range(k.shape[2]) if allowed(doc[b], span[b], i, j)]
            for h in range(q.shape[1]):
                scores = k[b, h // groups, seen] @ q[b, h, i] / q.shape[-1] ** 0.5
                out[b, h, i] = scores.softmax(0) @ v[b, h // groups, seen]
    return out


rows = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_dense_mask_is_the_rule(runs):
    doc = torch.tensor([[d for d, size, _ in runs for _ in range(size)]])
    span = torch.tensor([[(i + 1) * visual for i, (_, size, visual) in enumerate(runs) for _ in range(size)]])
    mask = dense_mask(doc, span)[0, 0]
    n = doc.shape[1]
    assert mask.tolist() == [[allowed(doc[0], span[0], q, k) for k in range(n)] for q in range(n)]
    assert torch.equal(dense_mask(doc, span, slice(n // 2, None))[0, 0], mask[n // 2:])


def packed_ids(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows: two documents with a picture each and padding, and one document with two pictures."""
    doc = torch.ones(2, length, dtype=torch.int64)
    doc[0, length // 2:], doc[0, -9:], doc[1] = 2, -1, 3
    span = torch.zeros_like(doc)
    span[0, 5:30], span[0, length // 2 + 3:length - 20] = 1, 2
    span[1, 4:60], span[1, 70:90] = 3, 4
    return doc, span


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("same", "next", "padding")), st.integers(1, 9), st.booleans()), min_size=1, max_size=8))
def test_pieces_of_documents_are_the_dense_mask(runs):
    """For any order of texts, spans and padding, next to each other or not."""
    doc, span, number = [], [], 1
    for i, (of, size, visual) in enumerate(runs):
        number += of != "same"
        doc += [-number if of == "padding" else number] * size
        span += [(i + 1) * (visual and of != "padding")] * size
        number += of == "padding"
    doc, span = torch.tensor([doc]), torch.tensor([span])
    torch.manual_seed(len(runs))
    q, k, v = torch.randn(1, 4, len(doc[0]), 8), *torch.randn(2, 1, 2, len(doc[0]), 8)
    real = (doc > 0)[:, None, :, None]
    pieces, dense = (attend(q, k, v, make(doc, span)) * real for make in (document_mask, dense_mask))
    torch.testing.assert_close(pieces, dense, atol=1e-5, rtol=0)


parts = st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), parts), min_size=1, max_size=5))
def test_block_mask_lists_the_blocks_that_attend(documents):
    """Some pair of a listed block attends, every pair of a full one; no other block does."""
    doc, span = [], []
    for number, (padding, pieces) in enumerate(documents, 1):
        for i, (size, visual) in enumerate(pieces):
            doc += [-number if padding else number] * size
            span += [(10 * number + i) * (visual and not padding)] * size
    doc, span = torch.tensor([doc]), torch.tensor([span])
    mask = block_mask(doc, span)
    n = -(-doc.shape[1] // BLOCK)
    exact = torch.zeros(n * BLOCK, n * BLOCK, dtype=torch.bool)
    exact[:doc.shape[1], :doc.shape[1]] = dense_mask(doc, span)[0, 0]
    tiles = exact.view(n, BLOCK, n, BLOCK).transpose(1, 2).flatten(2)

    def listed(counts, indices):
        found = torch.zeros(n, n, dtype=torch.bool)
        for row in range(n):
            found[row, indices[0, 0, row, :counts[0, 0, row]].long()] = True
        return found

    some, whole = listed(mask.kv_num_blocks, mask.kv_indices), listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert torch.equal(whole, tiles.all(2))
    assert torch.equal(some | whole, tiles.any(2)) and not (some & whole).any()


def qkv(length: int):
    torch.manual_seed(0)
    return (torch.randn(2, 4, length, 16, requires_grad=True), torch.randn(2, 2, length, 16, requires_grad=True),
            torch.randn(2, 2, length, 16, requires_grad=True))


def test_sdpa_and_flex_equal_the_reference():
    length = 128
    doc, span = packed_ids(length)
    q, k, v = qkv(length)
    expected = reference(q, k, v, doc, span)
    sdpa = attend(q, k, v, dense_mask(doc, span))
    torch.testing.assert_close(sdpa, expected, atol=1e-5, rtol=0)
    real = (doc > 0)[:, None, :, None]
    documents = attend(q, k, v, document_mask(doc, span))
    torch.testing.assert_close(documents * real, expected * real, atol=1e-5, rtol=0)
    with torch.no_grad():
        flex = attend(q, k, v, block_mask(doc, span))
    torch.testing.assert_close(flex, expected, atol=1e-5, rtol=0)


def test_gradients_of_sdpa_equal_the_reference():
    doc, span = packed_ids(96)
    real = (doc > 0)[:, None, :, None]
    grads = []
    for function in (lambda *x: reference(*x, doc, span), lambda *x: attend(*x, dense_mask(doc, span)),
                     lambda *x: attend(*x, document_mask(doc, span))):
        inputs = qkv(96)
        (function(*inputs) * real).square().sum().backward()
        grads.append([x.grad for x in inputs])
    for ours in grads[1:]:
        for mine, theirs in zip(ours, grads[0], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
