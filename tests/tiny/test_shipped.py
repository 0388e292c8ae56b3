import pytest

from showo2.tiny import resolve


def test_other_names_come_back_unchanged():
    assert resolve("Qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"


def test_unknown_part_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'tiny:vea'.*tiny:vae.*tiny:captioner"):
        resolve("tiny:vea")


def test_missing_part_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr("showo2.tiny.shipped._WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="--only vae"):
        resolve("tiny:vae")
