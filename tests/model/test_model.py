"""The model as a whole: absent modalities, packing, freezing, media of any shape."""

import pytest
import torch

from showo2.model.model import Fusion
from showo2.sequence import Media, Text, captioning, interleaved, pack, text_to_image
from tests.model.conftest import SPECIAL

torch.manual_seed(0)


def picture(seed: int, target: bool = True, frames: int = 1, h: int = 8, w: int = 8) -> Media:
    g = torch.Generator().manual_seed(seed)
    x1, x0 = (torch.randn(16, frames, h, w, generator=g) for _ in range(2))
    return Media(x1, 0.4, x0, True) if target else Media(x1)


def draw(seed: int, **shape) -> list:
    return text_to_image(SPECIAL, [seed + 1, 2, 3], picture(seed, **shape))


def read(seed: int, **shape) -> list:
    return captioning(SPECIAL, picture(seed, False, **shape), [4, 5, seed])


def losses(model, rows, context=128):
    packed = pack(rows, context, SPECIAL)
    out = model(packed)
    return torch.stack([out.ntp, out.flow, *map(torch.tensor, packed.targets)])


TEXT = [Text([280, 7, 8, 9, 281], True)]
BATCHES = {"no text label": [[draw(0)]], "no flow target": [[read(0)]], "no image": [[TEXT]], "nothing": [[]],
           "both": [[draw(0), read(1)], [TEXT]]}


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_any_modality_may_be_absent(model, rows):
    packed = pack(rows, 128, SPECIAL)
    out = model(packed)
    text, velocity = packed.targets
    loss = out.ntp / max(text, 1) + out.flow / max(velocity, 1)
    loss.backward()
    assert torch.isfinite(loss)
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} is outside the graph: FSDP would hang"
        assert torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize("documents", [
    [draw(0), draw(1), read(2)],
    [draw(0, frames=3), read(1), TEXT],
    [draw(0, h=4, w=12), interleaved(SPECIAL, [[1], picture(3), [2], picture(4, False), [3]])]])
def test_packing_changes_nothing(model, documents):
    together = losses(model, [documents], 512)
    apart = sum(losses(model, [[d]], 128) for d in documents)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)
    rows = losses(model, [[d] for d in documents], 128)
    torch.testing.assert_close(together, rows, rtol=1e-5, atol=1e-4)


def test_order_in_a_row_changes_nothing(model):
    documents = [draw(0), read(1), TEXT, draw(2)]
    torch.testing.assert_close(losses(model, [documents], 256), losses(model, [documents[::-1]], 256),
                               rtol=1e-5, atol=1e-4)


def test_the_future_is_not_seen(model):
    """Text after a document's last picture changes neither its velocity nor what precedes it."""
    one = interleaved(SPECIAL, [[1, 2], picture(0), [3, 4]])
    other = interleaved(SPECIAL, [[1, 2], picture(0), [9, 9]])
    assert losses(model, [[one]])[1] == losses(model, [[other]])[1]


def test_frozen_parts_build_no_graph(model):
    model.semantic.requires_grad_(False)
    seen = []
    model.semantic.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    losses(model, [[draw(0)]])
    assert seen == [False]


def test_video_frames_are_read_one_by_one(model):
    """S and P see each frame as a picture of its own; only the fusion's output is a clip."""
    clip = torch.randn(1, 16, 3, 8, 8)
    _, span = model.embed_visual(clip, torch.ones(1))
    frames = [model.embed_visual(clip[:, :, i:i + 1], torch.ones(1))[1][:, 1:] for i in range(3)]
    torch.testing.assert_close(span[:, 1:], torch.cat(frames, 1))
    assert span.shape[1] == 1 + 3 * 16


def test_amplified_fusion_listens_to_the_projector():
    torch.manual_seed(0)
    fusion, x = Fusion(8, 4), torch.randn(5, 12)
    plain, norm = fusion(x), fusion[0].weight.detach().clone()
    fusion.amplify(3.0, 2.0)
    assert torch.equal(fusion[0].weight, norm * torch.tensor([1.0] * 8 + [3.0] * 4))
    fusion.amplify(1 / 3, 1.0)
    torch.testing.assert_close(fusion(x) - fusion[3].bias, 2 * (plain - fusion[3].bias))
