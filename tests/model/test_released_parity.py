"""Every scenario of the golden data that the released implementation recorded, within the tolerances of its README.

`SHOWO2_GOLDEN=DIR` names other data of the same form; sizes are read from the `.json` files.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from showo2 import compat, flow
from showo2.generate.decoder import greedy
from showo2.generate.sampler import Sampling, Velocity, sample
from showo2.model import Showo2, Showo2Config, released
from showo2.model.attention import dense_mask
from showo2.model.flow_head import rope, rope_frequencies, time_sinusoid
from showo2.model.model import flow_loss
from showo2.model.semantic import SemanticLayers, distillation_loss, pool_frames
from showo2.sequence import IGNORE, Media, Packed, Text, Visuals
from showo2.text import SpecialTokens

GOLDEN = Path(os.environ.get("SHOWO2_GOLDEN", Path(__file__).parents[1] / "golden"))
ACTIVATION, LOSS, GRADIENT, TRAJECTORY = 2e-5, 1e-5, 1e-4, 2e-4


def scenarios(*patterns: str) -> list[str]:
    """Names of the scenarios in the golden folder that fit any of `patterns`."""
    return sorted({p.stem for pattern in patterns for p in GOLDEN.glob(f"{pattern}.safetensors")})


def read(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def load_model(name: str) -> Showo2:
    kind = name.rsplit("_", 1)[1]
    config = json.loads((GOLDEN / f"model_{kind}" / "config.json").read_text())["config"]
    llm = {"model_type": "qwen2", **config["llm_config_on_disk(vocab before resize)"]}
    where = GOLDEN / f"model_{kind}" / "official_save_pretrained"
    return Showo2.from_pretrained(where, llm=llm, siglip=config["siglip_vision_config"]).train()


def pack_golden(g: dict[str, torch.Tensor]) -> Packed:
    """The packed batch that says what the released call's arguments say: one document a row, pads a part of it."""
    ids = g["text_tokens"]
    b, length = ids.shape
    latents = g["image_latents"]
    latents = latents[:, :, None] if latents.dim() == 4 else latents
    velocity = g.get("image_labels", torch.zeros_like(latents)).view_as(latents)
    spans = [(r, int(o), int(n)) for r, row in enumerate(g["modality_positions"]) for o, n in row]
    kept = [i for i, (_, _, n) in enumerate(spans) if n]
    span = torch.zeros_like(ids)
    for number, i in enumerate(kept):
        r, o, n = spans[i]
        span[r, o:o + n] = number + 1
    t = g["t"]
    x1 = latents + (1 - t).view(-1, 1, 1, 1, 1) * velocity
    x0 = latents - t.view(-1, 1, 1, 1, 1) * velocity
    masks = g.get("image_masks")
    target = torch.tensor([masks is None or bool(masks[spans[i][0], spans[i][1] + 1]) for i in kept])
    start = torch.tensor([spans[i][0] * length + spans[i][1] for i in kept])
    columns = torch.arange(length).repeat(b, 1)
    labels = torch.full_like(ids, IGNORE)
    if "text_labels" in g:
        labels[:, :-1] = g["text_labels"][:, 1:]
    doc = torch.arange(1, b + 1)[:, None].repeat(1, length)
    visuals = [Visuals(x1[kept], x0[kept], t[kept], target, start, start)]
    return Packed(ids, labels, doc, span, columns, columns, visuals)


def as_released(packed: Packed, g: dict[str, torch.Tensor]) -> Packed:
    """The batch with the released code's treatment of padding images, where it has any."""
    images = g["modality_positions"].flatten(0, 1)
    padding = (images[:, 1] == 0).nonzero().squeeze(1)
    rows = padding // g["modality_positions"].shape[1]
    return compat.overwrite_bos(packed, rows, g["t"][padding]) if len(padding) else packed


def run(model: Showo2, packed: Packed) -> dict[str, torch.Tensor]:
    """What the released forward returns, from our pieces."""
    embeds, time = model.embed(packed)
    hidden = model.language(embeds, dense_mask(packed.doc, packed.span), packed.position)
    velocity = model.packed_velocity(hidden, time, packed)
    visuals = packed.visuals[0]
    n, (frames, h, w) = len(visuals.t), visuals.latents.shape[2:]
    tokens = frames * h * w // 4
    v = velocity.flatten(0, 1)[visuals.start[:, None] + 1 + torch.arange(tokens)]
    return {"act.llm_inputs_embeds": embeds, "act.llm_last_hidden": hidden, "logits": model.logits(hidden),
            "act.time_embed_out": time, "act.flow_out_fullseq": velocity,
            "v_pred": flow.from_tokens(v, (frames, h, w))[:n]}


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.view_as(theirs), theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", scenarios("a_*", "b_*", "c_*", "d_interleaved_*", "i_nonnative*"))
def test_forward(name: str):
    _, g = read(name)
    model, packed = load_model(name), as_released(pack_golden(g), g)
    for key, value in run(model, packed).items():
        if key == "act.time_embed_out":  # ours has the padding images' rows last
            value = value[:len(packed.visuals[0].t)]
            if len(value) != len(g.get(key, value)):
                continue
        if key in g:
            close(value, g[key], ACTIVATION)


@pytest.mark.parametrize("name", scenarios("*_train_*"))
def test_losses_and_gradients(name: str):
    expected, g = read(name)
    model, packed = load_model(name), as_released(pack_golden(g), g)
    out = model(packed)
    text, velocity = packed.targets
    ntp, flows = out.ntp / text, out.flow / velocity
    assert ntp.item() == pytest.approx(expected["loss_ntp"], abs=LOSS)
    assert flows.item() == pytest.approx(expected["loss_flow"], abs=LOSS)
    (0.2 * ntp + flows).backward()
    ours = {released.to_name(n): p.grad for n, p in model.named_parameters()}
    for key in (k for k in g if k.startswith("grad.")):
        theirs = g[key]
        error = (ours[key.removeprefix("grad.")] - theirs).norm() / theirs.norm()
        assert error < GRADIENT, f"{key}: {error:.2e}"
    for key, norm in expected["grad_norms_all_params"].items():
        assert ours[key].norm().item() == pytest.approx(norm, rel=GRADIENT, abs=1e-6), key


def test_flow_loss_is_the_released_one_without_the_whole_forward():
    _, g = read(scenarios("a_t2i_train_*")[0])
    packed = pack_golden(g)
    total = flow_loss(g["act.flow_out_fullseq"], packed.visuals, "released").sum()
    assert (total / packed.targets[1]).item() == pytest.approx(g["loss_flow"].item(), abs=LOSS)
    nothing = [replace(packed.visuals[0], target=torch.zeros_like(packed.visuals[0].target))]
    assert flow_loss(g["act.flow_out_fullseq"], nothing, "released").sum() == 0


@pytest.mark.parametrize("name", scenarios("d_interleaved_padded_*"))
def test_padding_images_leave_bos_alone_unless_asked(name: str):
    _, g = read(name)
    model, packed = load_model(name), pack_golden(g)
    assert (run(model, packed)["logits"] - g["logits"]).abs().max() > 100 * ACTIVATION


@pytest.mark.parametrize("name", scenarios("h_semantic_distill"))
def test_distillation(name: str):
    _, g = read(name)
    state = {released.from_name(k.removeprefix("sd.")).removeprefix("semantic."): v
             for k, v in g.items() if k.startswith("sd.")}
    width, layers = g["features"].shape[-1], 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
    config = json.loads((GOLDEN / "model_neq" / "config.json").read_text())["config"]["siglip_vision_config"]
    config |= {"hidden_size": width, "num_hidden_layers": layers + 1}
    latents = g["image_latents"]
    semantic = SemanticLayers(config, round(len(state["position.weight"]) ** 0.5))
    semantic.load_state_dict(state)
    features = semantic(latents)
    close(features, g["features"], ACTIVATION)
    total, _ = distillation_loss(features, g["clip_features"])
    loss = total / features.shape[:2].numel()
    assert loss.item() == pytest.approx(g["loss"].item(), abs=LOSS)
    loss.backward()
    ours = {f"grad.{released.to_name('semantic.' + n)}": p.grad for n, p in semantic.named_parameters()}
    for key in (k for k in g if k.startswith("grad.")):
        assert (ours[key] - g[key]).norm() / g[key].norm() < GRADIENT


@pytest.mark.parametrize("name", scenarios("i_pos_interp"))
def test_position_interpolation(name: str):
    _, g = read(name)
    for table, prefix in ((g["table"], "interp_"), (g["table27"], "interp27_")):
        grid = round(len(table) ** 0.5)
        semantic = SemanticLayers(
            {"hidden_size": table.shape[1], "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
            grid)
        semantic.position.weight.data.copy_(table)
        for key in (k for k in g if k.startswith(prefix)):
            h, w = map(int, key.removeprefix(prefix).split("x"))
            close(semantic.positions(h, w), g[key], ACTIVATION)


@pytest.mark.parametrize("name", scenarios("j_ode_grids"))
def test_sampling_times(name: str):
    _, g = read(name)
    for key, grid in g.items():
        points, shift = key.removeprefix("grid_n").split("_s")
        close(flow.sampling_times(int(points), 1.0 if shift == "None" else float(shift)), grid, 1e-7)


@pytest.mark.parametrize("name", scenarios("j_transport_time"))
def test_training_times(name: str):
    _, g = read(name)
    for key in (k for k in g if k.endswith("_maxNone_shiftTrue")):
        tokens = int(key.removeprefix("t_seq").split("_")[0])
        close(flow.training_time(g["u"], tokens), g[key], 1e-6)


@pytest.mark.parametrize("name", scenarios("l_components"))
def test_components(name: str):
    _, g = read(name)
    inverse = rope_frequencies(2 * len(g["flow_inv_freq"]))
    torch.testing.assert_close(inverse, g["flow_inv_freq"], rtol=1e-6, atol=0)
    cos, sin = rope(g["positions"][None], inverse)
    close(cos[0, 0], g["flow_cos"], ACTIVATION)
    close(sin[0, 0], g["flow_sin"], ACTIVATION)
    tiny = rope_frequencies(2 * len(g["tiny_flow_inv_freq"]))
    torch.testing.assert_close(tiny, g["tiny_flow_inv_freq"], rtol=1e-6, atol=0)
    close(time_sinusoid(g["t"], g["t_sinusoid"].shape[1]), g["t_sinusoid"], ACTIVATION)
    attend = g["omni_attend"]
    span = torch.zeros(len(attend), attend.shape[-1], dtype=torch.int64)
    for row, positions in zip(span, g["omni_positions"].tolist(), strict=True):
        for number, (offset, size) in enumerate(positions):
            row[offset:offset + size] = number + 1
    doc = torch.arange(len(span))[:, None].expand_as(span)
    assert torch.equal(dense_mask(doc, span), attend.bool())


@pytest.mark.parametrize("name", scenarios("n_output_pixel_order"))
def test_output_pixel_order(name: str):
    _, g = read(name)
    for kind in ("image", "video"):
        latent = g[f"{kind}_latent"]
        latent = latent[:, :, None] if latent.dim() == 4 else latent
        assert torch.equal(flow.from_tokens(g[f"{kind}_tokens"], tuple(latent.shape[2:])), latent)
        assert torch.equal(flow.to_tokens(latent), g[f"{kind}_tokens"])


@pytest.mark.parametrize("name", scenarios("m_video_und_pool"))
def test_frame_pooling(name: str):
    _, g = read(name)
    close(pool_frames(g["image_embeds"][None]), g["pooled"], ACTIVATION)


@pytest.mark.parametrize("size", [p.stem for p in sorted((GOLDEN / "manifests").glob("showo2_*.json"))])
def test_real_sizes(size: str):
    """Every key and shape of the real checkpoints, and their parameter counts, on the meta device."""
    manifest = json.loads((GOLDEN / "manifests" / f"{size}.json").read_text())
    counts = json.loads((GOLDEN / "manifests" / "param_counts.json").read_text())[size.removeprefix("showo2_")]
    siglip = {"hidden_size": 1152, "num_hidden_layers": counts["und_layers"] + 1, "num_attention_heads": 16,
              "intermediate_size": 4304, "image_size": 384, "patch_size": 14}
    llm = {"model_type": "qwen2", **counts["llm_config"], "vocab_size": counts["vocab"]}
    with torch.device("meta"):
        model = Showo2(Showo2Config(llm, siglip))
    shapes = {released.to_name(n): list(v.shape) for n, v in model.state_dict().items()}
    assert len(shapes) == counts["num_keys"]
    assert shapes == {k: shape for k, (shape, _) in manifest.items()}
    assert sum(p.numel() for p in model.parameters()) == counts["components"]["TOTAL(unique)"]


def special_ids(expected: dict) -> SpecialTokens:
    ids = expected["config"]["special_ids"]
    return SpecialTokens(ids["bos_id"], ids["eos_id"], ids["boi_id"], ids["eoi_id"], ids["bov_id"], ids["eov_id"],
                         ids["img_pad_id"], ids["vid_pad_id"], ids["pad_id"])


def prompts(g: dict[str, torch.Tensor], count: int) -> list[list[int]]:
    """The prompts' ids of the first rows: what stands between [BOS] and [BOI] (or [BOV])."""
    offsets = g["modality_positions"][:count, 0, 0].tolist()
    return [row[1:offset - 1].tolist() for row, offset in zip(g["text_tokens"], offsets, strict=False)]


def as_clips(latents: torch.Tensor) -> torch.Tensor:
    return latents[:, :, None] if latents.dim() == 4 else latents


@pytest.mark.parametrize("name", scenarios("e_*", "f_*"))
def test_sampling(name: str):
    expected, g = read(name)
    model, z = load_model(name).eval(), as_clips(g["z"])
    # The released sampler runs without guidance at 0, ours at 1.
    guidance = expected["guidance_scale"] or 1.0
    sampling = Sampling(expected["num_steps"], guidance)
    held = 1 if name.startswith("f_") else 0
    final = sample(model, special_ids(expected), prompts(g, len(z)), z, sampling, held)
    close(final, g["final"], TRAJECTORY)
    close(final, g["trajectory"][-1], TRAJECTORY)


@pytest.mark.parametrize("name", scenarios("e_*", "f_*"))
def test_velocity(name: str):
    expected, g = read(name)
    model, z = load_model(name).eval(), as_clips(g["z"])
    texts = prompts(g, len(z))
    with torch.no_grad():
        velocity = Velocity(model, special_ids(expected), [*texts, *[[]] * len(texts)], tuple(z.shape[2:]))
        if "v_raw" in g:
            raw = velocity(z, g["t"][0])
            close(raw, g["v_raw"], ACTIVATION)
            close(flow.guide(*raw.flip(0).unflatten(0, (2, -1)).flip(1), expected["guidance_scale"]),
                  g["v_cfg"][:len(z)], 10 * ACTIVATION)
        if "v_at_t05" in g:
            v_text, v_null = velocity(z, torch.tensor(0.5)).chunk(2)
            v = flow.guide(v_null, v_text, expected["guidance_scale"])
            v[:, :, :1] = 0
            close(v, g["v_at_t05"][:len(z)], 10 * ACTIVATION)


@pytest.mark.parametrize("name", scenarios("g_mmu_generate_*"))
@pytest.mark.parametrize("mask", ["train", "official"])
def test_answers(name: str, mask: str):
    expected, g = read(name)
    model, special = load_model(name).eval(), special_ids(expected)
    before, after = g["text_tokens_a"][0].tolist(), g["text_tokens_b"][0].tolist()
    document = [Text([*before, after[0]]), Media(g["image_latents"][0][:, None]), Text(after[1:])]
    wanted = g[f"tokens_{mask}"].tolist()
    answer = greedy(model, special, [document], len(wanted), released_spans=mask == "official")[0]
    assert answer == until_stop(wanted, special)


@pytest.mark.parametrize("name", scenarios("g_mm_and_lm_generate_*"))
@pytest.mark.parametrize("key, t", [("t1_train", 1.0), ("t0_official", 0.0), ("lm", None)])
def test_mixed_modal_text(name: str, key: str, t: float | None):
    expected, g = read(name)
    model, special = load_model(name).eval(), special_ids(expected)
    ids, latents = g["input_ids"].tolist(), g["image_latents"][0][:, None]
    offset, size = g["modality_positions"][0, 0].tolist()
    document = [Text(ids[:6])] if t is None else [
        Text(ids[:offset]), Media(latents, t, latents), Text(ids[offset + size:])]
    wanted = g[key].tolist()
    assert greedy(model, special, [document], len(wanted))[0] == until_stop(wanted, special)


def until_stop(ids: list[int], special: SpecialTokens) -> list[int]:
    stops = [i for i, token in enumerate(ids) if token in (special.eos, special.boi)]
    return ids[:stops[0]] if stops else ids


@pytest.mark.parametrize("name", scenarios("d_mixed_modal_*"))
def test_drawing_after_a_clean_history(name: str):
    """The conditioned row has its history clean; the null row's pictures all stood at one place, the last one won."""
    expected, g = read(name)
    model = load_model(name).eval()
    per_row = g["modality_positions"].shape[1]
    t = g["t"].clone().unflatten(0, (-1, per_row))
    t[:, :-1] = 1
    null = torch.zeros_like(g["modality_positions"])
    null[:1], null[1:, -1] = g["modality_positions"][:1], g["modality_positions"][1:, -1]
    packed = pack_golden({**g, "t": t.flatten(), "modality_positions": null})
    with torch.no_grad():
        v = run(model, packed)["v_pred"]
    v = flow.guide(v[-1], v[per_row - 1], expected["guidance_scale"])
    close(v, g["v"][per_row - 1], 10 * ACTIVATION)
    assert not g["v"][:per_row - 1].any()
