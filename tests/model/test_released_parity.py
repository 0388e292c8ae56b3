"""Every scenario of the golden data that the released implementation recorded, within the tolerances of its README.

`SHOWO2_GOLDEN=DIR` names other data of the same form, `SHOWO2_DEVICE=cuda` a GPU (see `golden.py`).
"""

import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file

from showo2 import flow
from showo2.generate.decoder import greedy
from showo2.generate.sampler import Sampling, Velocity, sample
from showo2.model import Showo2, checkpoint, released, weights
from showo2.model.attention import dense_mask
from showo2.model.flow_head import rope, rope_frequencies, time_sinusoid
from showo2.model.model import flow_loss
from showo2.model.semantic import SemanticLayers, distillation_loss, pool_frames
from showo2.sequence import (
    IGNORE,
    Document,
    Media,
    Text,
    length,
    pack,
)
from showo2.text import SpecialTokens
from showo2.vae import WanVAE
from tests.model.golden import (
    ACTIVATION,
    ASKED,
    DEVICE,
    GOLDEN,
    GRADIENT,
    LOSS,
    TRAJECTORY,
    VAE,
    as_clips,
    as_released,
    close,
    facts,
    layout_document,
    load_model,
    pack_golden,
    read,
    run,
    scenarios,
    special_ids,
)


@pytest.mark.parametrize("name", scenarios("[abc]_*_eq", "[abc]_*_neq", "d_interleaved_*", "i_nonnative*"))
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
    pictures = as_clips(g["image_latents"]).transpose(1, 2).flatten(0, 1)
    for key, part in (("act.und_out", model.semantic), ("act.fusion_out", model.fuse)):
        if key in g:
            close(part(pictures), g[key], ACTIVATION)


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


@pytest.mark.parametrize("name", scenarios("*_train_*"))
def test_flow_loss_is_the_released_one_without_the_whole_forward(name: str):
    _, g = read(name)
    packed = pack_golden(g)
    total = flow_loss(g["act.flow_out_fullseq"], packed.visuals, "released").sum()
    assert (total / packed.targets[1]).item() == pytest.approx(g["loss_flow"].item(), abs=LOSS)


@pytest.mark.parametrize("name", scenarios("a_nan_behaviour"))
@pytest.mark.parametrize("train", scenarios("*_train_*"))
def test_an_absent_modality_is_no_nan(name: str, train: str):
    """The released losses were: of text where nothing is labelled, of flow where nothing is to be drawn."""
    recorded = facts(name)
    assert recorded["pure_t2i_batch"]["loss_ntp"] == recorded["all_image_masks_zero"]["loss_flow"] == "nan"
    _, g = read(train)
    packed, model = pack_golden(g), load_model(train)
    without_text = replace(packed, labels=torch.full_like(packed.labels, IGNORE))
    nothing = torch.zeros_like(packed.visuals[0].target)
    without_flow = replace(packed, visuals=[replace(packed.visuals[0], target=nothing)])
    for batch, absent in ((without_text, "ntp"), (without_flow, "flow")):
        model.zero_grad()
        out = model(batch)
        assert getattr(out, absent) == 0
        (out.ntp + out.flow).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


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
    kind = scenarios("*_train_*")[0].rsplit("_", 1)[1]
    config = facts(f"model_{kind}/config")["config"]["siglip_vision_config"]
    config |= {"hidden_size": width, "num_hidden_layers": layers + 1,
               "intermediate_size": len(state["layers.0.mlp.fc1.weight"])}
    latents = g["image_latents"]
    semantic = SemanticLayers(config, round(len(state["position.weight"]) ** 0.5))
    semantic.load_state_dict(state)
    semantic.to(DEVICE)
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
    _, g = read(name, "cpu")
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
    _, g = read(name, "cpu")
    for kind in ("image", "video"):
        latent = g[f"{kind}_latent"]
        latent = latent[:, :, None] if latent.dim() == 4 else latent
        assert torch.equal(flow.from_tokens(g[f"{kind}_tokens"], tuple(latent.shape[2:])), latent)
        assert torch.equal(flow.to_tokens(latent), g[f"{kind}_tokens"])


@pytest.mark.parametrize("name", scenarios("m_video_und_pool"))
def test_frame_pooling(name: str):
    _, g = read(name)
    side = round((g["pooled"].shape[1] / len(g["image_embeds"])) ** 0.5)
    close(pool_frames(g["image_embeds"][None], side), g["pooled"], ACTIVATION)


@pytest.mark.parametrize("kind", sorted(p.name for p in GOLDEN.glob("model_*")))
def test_an_exported_model_is_the_released_checkpoint_again(kind: str, tmp_path):
    stored = facts(f"{kind}/official_save_pretrained/config")
    model = load_model(kind)
    checkpoint.save_released(model, tmp_path, stored["llm_model_path"], stored["clip_pretrained_model_path"])
    ours, theirs = weights.read(tmp_path), weights.read(GOLDEN / kind / "official_save_pretrained")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert json.loads((tmp_path / "config.json").read_text()).items() <= stored.items()


@pytest.mark.parametrize("size", sorted(p.stem for p in (GOLDEN / "manifests").glob("showo2_*.json")))
def test_real_sizes(size: str):
    """Every key and shape of the real checkpoints, and their parameter counts, on the meta device."""
    manifest = {key: shape for key, (shape, _) in facts(f"manifests/{size}").items()}
    counts = facts("manifests/param_counts")[size.removeprefix("showo2_")]
    state = {released.from_name(k): torch.empty(shape, device="meta") for k, shape in manifest.items()}
    width, heads = manifest["position_embedding.weight"][1], 16
    siglip = {"hidden_size": width, "num_hidden_layers": counts["und_layers"] + 1, "num_attention_heads": heads,
              "intermediate_size": manifest["und_trans.layers.0.mlp.fc1.weight"][0]}
    config = released.read_config({}, state, {"model_type": "qwen2", **counts["llm_config"]}, siglip)
    with torch.device("meta"):
        model = Showo2(config)
    shapes = {released.to_name(n): list(v.shape) for n, v in model.state_dict().items()}
    assert len(shapes) == counts["num_keys"] and shapes == manifest
    assert config.llm["vocab_size"] == counts["vocab"]
    assert sum(p.numel() for p in model.parameters()) == counts["components"]["TOTAL(unique)"]


@pytest.mark.parametrize("name", sorted(p.stem for p in (GOLDEN / "manifests").glob("wan21_vae.json")))
def test_real_vae(name: str):
    manifest = {key: shape for key, (shape, _) in facts(f"manifests/{name}").items()}
    state = convert_wan_vae_to_diffusers({k: torch.empty(shape, device="meta") for k, shape in manifest.items()})
    vae = WanVAE({"base_dim": manifest["encoder.conv1.weight"][0]}, state, device="meta")
    assert len(vae.network.state_dict()) == len(manifest)


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    sizes = facts("vae/golden")
    config = {"base_dim": sizes["dim"], "dim_mult": sizes["dim_mult"], "num_res_blocks": sizes["num_res_blocks"],
              "temperal_downsample": sizes["temperal_downsample"], "latents_mean": sizes["mean"],
              "latents_std": sizes["std"]}
    state = load_file(GOLDEN / "vae" / "official_state_dict.safetensors")
    return WanVAE(config, convert_wan_vae_to_diffusers(state), device=DEVICE)


@pytest.mark.parametrize("scenario", sorted(
    key.removesuffix(".pixels") for path in (GOLDEN / "vae").glob("golden.json")
    for key in json.loads(path.read_text())["tensors"] if key.endswith(".pixels")))
def test_vae(vae: WanVAE, scenario: str):
    golden = load_file(GOLDEN / "vae" / "golden.safetensors", DEVICE)
    mean, logvar = vae.moments(golden[f"{scenario}.pixels"])
    close(mean, golden[f"{scenario}.mu_norm"], VAE)
    close(logvar, golden[f"{scenario}.logvar_raw"], VAE)
    close(mean + torch.exp(0.5 * logvar) * golden[f"{scenario}.eps"], golden[f"{scenario}.z_official"], VAE)
    close(vae.decode(golden[f"{scenario}.z_official"]), golden[f"{scenario}.decoded"], VAE)


def prompts(g: dict[str, torch.Tensor], count: int) -> list[Document]:
    """The prompts of the first rows: what stands before [BOI] (or [BOV])."""
    offsets = g["modality_positions"][:count, 0, 0].tolist()
    return [[Text(row[:offset - 1].tolist())] for row, offset in zip(g["text_tokens"], offsets, strict=False)]


@pytest.mark.parametrize("name", scenarios("e_*", "f_*"))
def test_sampling(name: str):
    expected, g = read(name)
    model, z = load_model(name).eval(), as_clips(g["z"])
    # The released sampler runs without guidance at 0, ours at 1.
    guidance = expected["guidance_scale"] or 1.0
    sampling = Sampling(expected["num_steps"], guidance)
    held = 1 if name.startswith("f_") else 0
    final = sample(model, special_ids(expected["config"]["special_ids"]), prompts(g, len(z)), z, sampling, held)
    close(final, g["final"], TRAJECTORY)


@pytest.mark.parametrize("name", scenarios("e_*", "f_*"))
def test_velocity(name: str):
    expected, g = read(name)
    model, z = load_model(name).eval(), as_clips(g["z"])
    special = special_ids(expected["config"]["special_ids"])
    nothing: list[Document] = [[Text([special.bos])]] * len(z)
    with torch.no_grad():
        velocity = Velocity(model, special, [*prompts(g, len(z)), *nothing], tuple(z.shape[2:]))
        if "v_raw" in g:
            raw = velocity(z, g["t"][0])
            close(raw, g["v_raw"], ACTIVATION)
            close(flow.guide(*raw.flip(0).unflatten(0, (2, -1)).flip(1), expected["guidance_scale"]),
                  g["v_cfg"][:len(z)], 10 * ACTIVATION)
        if "v_at_t05" in g:
            v_text, v_null = velocity(z, z.new_tensor(0.5)).chunk(2)
            v = flow.guide(v_null, v_text, expected["guidance_scale"])
            v[:, :, :1] = 0
            close(v, g["v_at_t05"][:len(z)], 10 * ACTIVATION)


@pytest.mark.parametrize("name", scenarios("g_mmu_generate_*"))
@pytest.mark.parametrize("mask", ["train", "official"])
def test_answers(name: str, mask: str):
    expected, g = read(name)
    model, special = load_model(name).eval(), special_ids(expected["config"]["special_ids"])
    before, after = g["text_tokens_a"][0].tolist(), g["text_tokens_b"][0].tolist()
    document = [Text([*before, after[0]]), Media(g["image_latents"][0][:, None].cpu()), Text(after[1:])]
    wanted = g[f"tokens_{mask}"].tolist()
    answer = greedy(model, special, [document], len(wanted), released_spans=mask == "official")[0]
    assert answer == until_stop(wanted, special)


@pytest.mark.parametrize("name", scenarios("g_mm_and_lm_generate_*"))
@pytest.mark.parametrize("key, t", [("t1_train", 1.0), ("t0_official", 0.0), ("lm", None)])
def test_mixed_modal_text(name: str, key: str, t: float | None):
    expected, g = read(name)
    model, special = load_model(name).eval(), special_ids(expected["config"]["special_ids"])
    ids, latents = g["input_ids"].tolist(), g["image_latents"][0][:, None].cpu()
    offset, size = g["modality_positions"][0, 0].tolist()
    prefix = int(re.search(r"input_ids\[:(\d+)\]", expected["tensors"]["lm"]["meaning"]).group(1))
    document = [Text(ids[:prefix])] if t is None else [
        Text(ids[:offset]), Media(latents, t, latents), Text(ids[offset + size:])]
    wanted = g[key].tolist()
    assert greedy(model, special, [document], len(wanted))[0] == until_stop(wanted, special)


def until_stop(ids: list[int], special: SpecialTokens) -> list[int]:
    stops = [i for i, token in enumerate(ids) if token in (special.eos, special.boi)]
    return ids[:stops[0] + 1] if stops else ids


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


LAYOUTS = {case: layout for name in scenarios("k_layouts") for case, layout in facts(name)["cases"].items()}


@pytest.mark.parametrize("case, kind", [(case, kind) for case, layout in LAYOUTS.items() for kind in ("", "_null")
                                        if f"text_tokens{kind}" in layout])
def test_layouts(case: str, kind: str):
    """Tokens, spans and (shifted) labels; image pads are no targets of ours. Nothing follows a picture to be drawn."""
    layout, special = LAYOUTS[case], special_ids(facts("k_layouts")["special_ids"])
    rows, places = (layout[f"{key}{kind}"] for key in ("text_tokens", "modality_positions"))
    inference = case.endswith("inference")
    for ids, spans in zip(rows, places, strict=True) if inference else [(rows, places)]:
        spans = [span for span in spans if span != [0, 0]]
        media = [Media(torch.zeros(16, frames, 2, 2 * (size - 1) // frames)) for offset, size in spans
                 for frames in [1 + (ids[offset] == special.video_pad)]]
        document = layout_document(case, layout, ids, media, spans)
        known = sum(spans[0]) + 1 if inference else len(ids)
        packed = pack([[document]], max(len(ids), length(document)), special)
        assert packed.ids[0, :known].tolist() == ids[:known]
        found = [[int(s), 1 + v.latents[0, 0].numel() // 4] for v in packed.visuals for s in v.start]
        assert sorted(found) == spans
        if not inference:
            labels = torch.tensor(layout["text_labels"]).masked_fill(packed.span[0, :known] > 0, IGNORE)
            assert torch.equal(packed.labels[0, :known - 1], labels[1:])


def test_no_scenario_is_left_out():
    """Every recording in the folder was asked for by some test above."""
    assert {p.stem for p in GOLDEN.glob("*.json")} <= ASKED
