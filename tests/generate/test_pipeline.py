"""The pipeline as a user sees it: same arguments, same results; mistakes are named."""

import numpy as np
import pytest
from PIL import Image

from showo2.generate import Showo2Pipeline

PROMPTS = ["a red circle", "a blue square left of a green triangle", "two cyan circles", ""]


def levels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (90, 70), (64, 200)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_pictures_depend_on_seed_and_index_not_on_the_batch(pipeline):
    done: list[int] = []
    together = levels(pipeline.image(PROMPTS, 4.0, 4, seed=3, on_batch=done.append))
    assert together.shape == (4, 64, 64, 3) and done == [4]
    alone = levels(pipeline.image(PROMPTS, 4.0, 4, seed=3, batch=1))
    assert abs(together - alone).max() <= 1
    later = levels(pipeline.image(PROMPTS[2:], 4.0, 4, seed=3, first=2))
    assert abs(later - together[2:]).max() <= 1
    assert abs(levels(pipeline.image(PROMPTS, 4.0, 4, seed=4)) - together).max() > 1


def test_the_prompt_and_the_guidance_matter(pipeline):
    first, second = levels(pipeline.image(["a red circle"], 5.0, 4) + pipeline.image(["two cyan squares"], 5.0, 4))
    assert abs(first - second).max() > 1
    assert abs(levels(pipeline.image("a red circle", 1.0, 4))[0] - first).max() > 1


def test_a_clip_is_its_frames(pipeline):
    together = pipeline.video(PROMPTS[:3], 4.0, 3, seed=3, frames=9, batch=2)
    assert [len(clip) for clip in together] == [9] * 3 and together[0][0].size == (64, 64)
    alone = pipeline.video(PROMPTS[1], 4.0, 3, seed=3, frames=9, first=1)
    assert abs(levels(alone[0]) - levels(together[1])).max() <= 1
    assert abs(levels(together[0]) - levels(together[1])).max() > 1
    with pytest.raises(ValueError, match="frames=16: use 1 more than a multiple of 4"):
        pipeline.video("a red circle moves to the left", frames=16)


def test_a_clip_begins_with_its_picture(pipeline, photos):
    (clip,) = pipeline.animate(photos[1], "a red circle moves to the left", 4.0, 3, seed=3, frames=9)
    assert len(clip) == 9
    begun = levels(pipeline.decode(pipeline.encode([photos[1]]))[0])
    assert abs(levels(clip[:1]) - begun).max() <= 1
    (other,) = pipeline.animate(photos[1], "a red circle moves to the left", 4.0, 3, seed=4, frames=9)
    assert abs(levels(other[:1]) - begun).max() <= 1 and abs(levels(other[1:]) - levels(clip[1:])).max() > 1
    together = pipeline.animate(photos, PROMPTS[:3], 4.0, 3, seed=3, frames=9, batch=2)
    alone = pipeline.animate(photos[2], PROMPTS[2], 4.0, 3, seed=3, frames=9, first=2)
    assert len(together) == 3 and abs(levels(together[2]) - levels(alone[0])).max() <= 1
    with pytest.raises(ValueError, match="2 pictures and 1 prompts"):
        pipeline.animate(photos[:2], "a red circle")


def test_stories_do_not_depend_on_the_batch(pipeline, photos):
    histories = ["a red circle", ["two squares", photos[0], "and then"], [photos[1]]]
    together = pipeline.stories(histories, 4.0, 3, seed=3, pictures=2, max_new_tokens=5)
    assert len(together) == 3 and all(story for story in together)
    assert together == pipeline.stories(histories, 4.0, 3, seed=3, pictures=2, max_new_tokens=5, batch=1)
    assert together[0] == pipeline.story("a red circle", 4.0, 3, seed=3, pictures=2, max_new_tokens=5)
    with pytest.raises(ValueError, match="pictures=0"):
        pipeline.story("a red circle", pictures=0)


def test_a_question_about_a_clip(pipeline, photos):
    answers = pipeline.answer([photos[0], photos * 3, photos[:1] * 5], ["what?"] * 3, 8)
    assert len(answers) == 3 and answers[0] == pipeline.answer(photos[0], "what?", 8)[0]
    assert answers[1] == pipeline.answer([photos * 3], ["what?"], 8)[0]
    with pytest.raises(ValueError, match="frames=3: use 1 more than a multiple of 4"):
        pipeline.answer([photos], ["what?"])


def test_another_size(pipeline):
    assert pipeline.image("a red circle", 4.0, 3, size=96)[0].size == (96, 96)


def test_answers_do_not_depend_on_the_batch(pipeline, photos):
    questions = ["what colour is the circle?", "how many?", "where is the red square?"]
    together = pipeline.answer(photos, questions, 12)
    assert len(together) == 3 and len(set(together)) > 1
    assert together == pipeline.answer(photos, questions, 12, batch=1)
    assert together[0] == pipeline.answer(photos[0], questions[0], 12)[0]


def test_answers_stream(pipeline, photos):
    pieces: dict[int, str] = {}

    def hear(row: int, piece: str) -> None:
        pieces[row] = pieces.get(row, "") + piece

    answers = pipeline.answer(photos, ["what?"] * 3, 12, batch=2, on_text=hear)
    for row, answer in enumerate(answers):
        # A last character that never got all its bytes is in the answer, but was never told.
        assert answer.startswith(pieces.get(row, "").strip().rstrip("\ufffd"))


def test_grey_and_transparent_pictures_are_read(pipeline):
    assert pipeline.encode([Image.new("L", (64, 64)), Image.new("RGBA", (80, 64))]).shape == (2, 16, 1, 8, 8)


def test_the_hash_is_that_of_the_weights(pipeline, checkpoint):
    again = Showo2Pipeline.from_pretrained(checkpoint)
    assert again.checkpoint_hash == pipeline.checkpoint_hash
    again.model.projector.bias.add_(1)
    changed = Showo2Pipeline(again.model, again.tokenizer, again.vae)
    assert changed.checkpoint_hash != pipeline.checkpoint_hash


@pytest.mark.parametrize(("options", "message"), [
    ({"size": 60}, "size=60: use a positive multiple of 16"), ({"points": 1}, "points=1"), ({"batch": 0}, "batch=0")])
def test_wrong_options_are_named(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.image("a red circle", **options)


def test_a_question_too_many_is_named(pipeline, photos):
    with pytest.raises(ValueError, match="3 pictures and 2 questions"):
        pipeline.answer(photos, ["what?"] * 2)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        Showo2Pipeline.from_pretrained(str(tmp_path))
