"""Transfer maps: scale-up and distilled layers, and the report of every tensor."""

import json
from dataclasses import replace

import pytest
import torch

from showo2.model import Showo2, released
from showo2.model.transfer import SCALE_UP, SEMANTIC_LAYERS, TransferMap, transfer
from tests.model.conftest import random_model, small_config


def large_model(**changes: object) -> Showo2:
    """A larger language model, untied, over flow head and semantic layers of the small one's sizes."""
    config = small_config(width=64, tied=False)
    config = replace(config, llm=config.llm | {"num_hidden_layers": 3}, **changes)
    torch.manual_seed(1)
    return Showo2(config)


def state(model: Showo2) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_scale_up_keeps_the_head_time_and_semantic_layers(tmp_path, model):
    model.save_pretrained(tmp_path)
    large = large_model()
    before = state(large)
    report = transfer(large, tmp_path, SCALE_UP).check()
    for name, tensor in large.state_dict().items():
        carried = name.startswith(("semantic.", "time_embed.", "flow_head.blocks.", "flow_head.final."))
        assert torch.equal(tensor, model.state_dict()[name] if carried else before[name]), name
        assert (name in report.names("kept")) == carried and (name in report.names("new")) == (not carried)
    assert not report.names("misfit")
    dropped = ("language_model.", "projector.", "fusion.", "time_project.", "flow_head.project.")
    assert set(report.names("dropped")) == {n for n in model.state_dict() if n.startswith(dropped)} - {
        "language_model.lm_head.weight"}  # tied, so not stored
    final = sum(p.numel() for p in model.flow_head.final.parameters())
    assert f"flow_head.final      kept         5 tensors {final:15,} parameters" in str(report)
    assert len(json.loads(json.dumps(report.to_dict()))["entries"]) == len(report.entries)


def test_a_released_checkpoint_is_a_source_too(tmp_path, model):
    torch.save({released.to_name(n): t for n, t in model.state_dict().items()}, tmp_path / "pytorch_model.bin")
    large = large_model()
    report = transfer(large, tmp_path, SCALE_UP).check()
    assert torch.equal(large.flow_head.final.linear.weight, model.flow_head.final.linear.weight)
    assert "language_model.lm_head.weight" in report.names("dropped")


def test_distilled_layers_come_from_a_file_or_a_whole_model(tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    distilled = {released.to_name(f"semantic.{n}"): t for n, t in model.semantic.state_dict().items()}
    torch.save(distilled, tmp_path / "distilled.pt")
    for source in (tmp_path / "model", tmp_path / "distilled.pt"):
        large = large_model()
        before = state(large)
        report = transfer(large, source, SEMANTIC_LAYERS).check()
        for name, tensor in large.state_dict().items():
            carried = name.startswith("semantic.")
            assert torch.equal(tensor, model.state_dict()[name] if carried else before[name]), name
        assert len(report.names("kept")) == len(distilled)


def test_misfits_are_left_alone_and_named(tmp_path, model):
    tensors = dict(model.state_dict())
    tensors["surprise.weight"] = torch.zeros(2)
    del tensors["time_embed.mlp.0.bias"]
    torch.save(tensors, tmp_path / "small.pt")
    large = large_model(grid=5)
    before = state(large)
    report = transfer(large, tmp_path / "small.pt", SCALE_UP)
    assert report.names("misfit") == ["semantic.position.weight", "time_embed.mlp.0.bias", "surprise.weight"]
    assert torch.equal(large.semantic.position.weight, before["semantic.position.weight"])
    with pytest.raises(ValueError, match=r"3 tensors.*semantic\.position\.weight \(\(16, 32\) there, \(25, 32\) here"):
        report.check()


def test_every_tensor_has_one_fate_on_each_side(tmp_path, model):
    model.save_pretrained(tmp_path)
    large = large_model(grid=5)
    report = transfer(large, tmp_path, TransferMap(keep=("semantic.",), drop=("language_model.", "flow_head.")))
    here = [e.name for e in report.entries if e.model is not None]
    there = [e.name for e in report.entries if e.checkpoint is not None]
    assert sorted(here) == sorted(large.state_dict())
    assert sorted(there) == sorted(model.state_dict().keys() - {"language_model.lm_head.weight"})
    assert "projector.weight" in report.names("misfit") and "projector.weight" in report.names("new")


def test_a_flow_head_of_the_other_order_is_refused(tmp_path):
    random_model(replace(small_config(), order="patch")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="output order 'patch', the model has 'released'"):
        transfer(large_model(), tmp_path, SCALE_UP)
    transfer(large_model(), tmp_path, SEMANTIC_LAYERS).check()
