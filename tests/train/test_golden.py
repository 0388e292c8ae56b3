"""Short runs of the recipes are held to their committed loss curves."""

import json

import pytest

from tests.train.golden import CURVES, STEPS, curves


def test_recipes_lose_as_they_did(tmp_path):
    wanted, found = json.loads(CURVES.read_text()), curves(tmp_path)
    cure = "if the change is meant, run python -m tests.train.golden"
    assert list(found) == list(wanted), cure
    # One kind of processor differs from another by up to 0.00025, in the last stage of the ladder.
    for name, losses in found.items():
        assert len(losses) == STEPS and losses == pytest.approx(wanted[name], rel=1e-3), f"{name}: {cure}"
