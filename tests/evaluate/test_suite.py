"""A painter that does what it is told scores 1; one that does not, does not."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from showo2.evaluate.shapes import detect
from showo2.evaluate.suite import (
    CLIP_KINDS,
    KINDS,
    Suite,
    clip_prompts,
    clip_questions,
    evaluate,
    picture_prompts,
    scene_questions,
    story_beginnings,
)
from showo2.tiny.moving import DIRECTIONS, Motion, motion_is_held_out, parse_motion
from showo2.tiny.questions import questions
from showo2.tiny.render import render
from showo2.tiny.world import CATEGORIES, COLOURS, Object, Scene, draw_scene, is_held_out, parse, prompts

SPOTS = {"left": (0.2, 0.5), "right": (0.8, 0.5), "top": (0.5, 0.2), "bottom": (0.5, 0.8), "centre": (0.5, 0.5)}
SIDES = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom"),
         "below": ("bottom", "top")}
QUARTERS = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]


def scene_of(prompt: str) -> Scene:
    """One scene that the prompt describes."""
    asked = parse(prompt)
    kinds = [(g.colour or random.choice(list(COLOURS)), g.shape) for g in asked.groups for _ in range(g.count)]
    spots = QUARTERS
    if asked.place:
        spots = [SPOTS[asked.place]]
    elif asked.relation:
        spots = [SPOTS[side] for side in SIDES[asked.relation]]
    return Scene(tuple(Object(*kind, *spot, 0.13) for kind, spot in zip(kinds, spots, strict=False)))


def shown(image) -> bytes:
    """The bytes of a picture, or of a clip's frames."""
    return image.tobytes() if isinstance(image, Image.Image) else b"".join(frame.tobytes() for frame in image)


class Painter:
    """Draws what a prompt says, and knows the answers of the suite's questions."""

    checkpoint_hash = "painter"
    beside = 0.0

    def __init__(self, suite: Suite):
        self.key = {(question, shown(image)): answer
                    for asked in (scene_questions(suite), clip_questions(suite)) for _, question, answer, image in asked}

    def image(self, prompts, guidance, points, seed, *, batch, on_batch):
        if on_batch is not None:
            on_batch(len(prompts))
        return [render(scene_of(prompt), 64) for prompt in prompts]

    def video(self, prompts, guidance, points, seed, *, batch, on_batch):
        moved = []
        for kind, direction in map(parse_motion, prompts):
            motion = Motion(Object(kind.colour, kind.shape, 0.5, 0.5, 0.15), direction)
            moved.append([render(motion.at(frame / 24), 64) for frame in range(17)])
        return moved

    def animate(self, images, prompts, guidance, points, seed, *, batch, on_batch):
        """From where the picture has its object, or a little beside it where it is careless."""
        clips = []
        for image, (kind, direction) in zip(images, map(parse_motion, prompts), strict=True):
            (seen,) = detect(image)
            assert (seen.colour, seen.shape) == (kind.colour, kind.shape)
            dx, dy = (share / 4 for share in DIRECTIONS[direction])
            motion = Motion(Object(kind.colour, kind.shape, seen.x + dx, seen.y + dy + self.beside, 0.13), direction)
            clips.append([render(motion.at(frame / 24), 64) for frame in range(17)])
        return clips

    def stories(self, histories, guidance, points, seed, *, batch, on_batch):
        return [self.story(text, parse(text).groups[0]) for text in histories]

    def story(self, beginning, thing):
        second = f"{thing.shape} at the bottom"
        return [self.drawn(beginning), f"a {second}", self.drawn(f"a {thing.colour} {second}")]

    def drawn(self, prompt):
        return render(scene_of(prompt), 64)

    def answer(self, images, questions, max_new_tokens, *, batch):
        return [self.key[question, shown(image)] for question, image in zip(questions, images, strict=True)]


class Careless(Painter):
    """Forgets colours and relations, does not look closely, and says what is likely."""

    beside = 0.08

    def image(self, prompts, guidance, points, seed, *, batch, on_batch):
        def dull(scene):
            return Scene(tuple(replace(o, colour="red", x=1 - o.x) for o in scene.objects))

        return [render(dull(scene_of(prompt)), 64) for prompt in prompts]

    def video(self, prompts, guidance, points, seed, *, batch, on_batch):
        clips = super().video(prompts, guidance, points, seed, batch=batch, on_batch=on_batch)
        return [clip[:1] * len(clip) if " moves to the left" in prompt else clip
                for prompt, clip in zip(prompts, clips, strict=True)]

    def stories(self, histories, guidance, points, seed, *, batch, on_batch):
        """Begins well, but forgets the colour."""
        stories = super().stories(histories, guidance, points, seed, batch=batch, on_batch=on_batch)
        return [[picture, text, self.drawn(f"a red {text[2:]}")] for picture, text, _ in stories]

    def answer(self, images, questions, max_new_tokens, *, batch):
        return ["Two."] * len(questions)


SMALL = Suite(pictures=12, questions=12)


def test_a_faithful_painter_scores_one():
    told: Counter[str] = Counter()
    report = evaluate(Painter(SMALL), SMALL, lambda part, count: told.update({part: count}))
    scores = report.scores
    assert scores["picture"] == {**dict.fromkeys(CATEGORIES, 1.0), "score": 1.0}
    assert scores["question"] == {**dict.fromkeys(KINDS, 1.0), "score": 1.0}
    assert told == {part: total for part, total in SMALL.totals.items() if total}
    assert told == {"pictures": 12 * len(CATEGORIES), "questions": 12 * len(KINDS)}


def test_a_careless_painter_does_not():
    scores = evaluate(Careless(SMALL), SMALL).scores
    assert scores["picture"]["two_objects"] == 1.0
    assert scores["picture"]["color_attribution"] == 0.0 and scores["picture"]["colors"] < 0.5
    assert scores["picture"]["score"] == pytest.approx(sum(scores["picture"][c] for c in CATEGORIES) / 6)
    assert scores["question"]["colour"] == 0.0 and scores["question"]["count"] > 0.0


def test_everything_asked_is_held_out():
    suite = Suite()
    asked = picture_prompts(suite)
    assert [c for c, _ in asked] == [c for c in CATEGORIES for _ in range(suite.pictures)]
    assert all(is_held_out(prompt) for _, prompt in asked)
    for category in CATEGORIES:
        used, there = {p for c, p in asked if c == category}, prompts(category, held_out=True)
        assert len(used) == min(suite.pictures, len(there))
    tests = scene_questions(suite)
    assert [sum(t[0] == kind for t in tests) for kind in KINDS] == [suite.questions] * len(KINDS)
    assert tests == scene_questions(suite)


def test_each_kind_of_answer_is_as_varied_as_the_world():
    tests = scene_questions(Suite())
    answers = {kind: {t[2] for t in tests if t[0] == kind} for kind in KINDS}
    assert len(answers["colour"]) >= 7 and len(answers["shape"]) == 3
    assert len(answers["place"]) >= 4 and len(answers["count"]) >= 3
    assert [t[2] for t in tests if t[0] == "relation"].count("yes") in range(18, 31)


def test_colours_are_asked_beside_other_shapes_as_often_as_in_the_world():
    shapes = [{d.shape for d in detect(image)} for kind, _, _, image in scene_questions(Suite()) if kind == "colour"]
    world, rng = [], random.Random(1)
    while len(world) < 1000:
        scene = draw_scene(rng, held_out=True)
        if any(question.startswith(KINDS["colour"]) for question, _ in questions(scene, rng)):
            world.append({thing.shape for thing in scene.objects})
    share = sum(len(some) > 1 for some in world) / len(world)
    assert sum(len(some) > 1 for some in shapes) / len(shapes) == pytest.approx(share, abs=0.1)


def test_an_empty_suite_is_an_error():
    with pytest.raises(ValueError, match="pictures=0"):
        Suite(pictures=0)


def test_kinds_cover_the_questions_of_the_world():
    scene = scene_of("a red circle left of a blue square")
    assert {q.startswith(tuple(KINDS.values())) for q, _ in questions(scene, random.Random(0))} == {True}


def test_clips_are_drawn_on_demand_and_judged_by_direction():
    suite = Suite(pictures=1, questions=1, clips=8)
    assert [direction for direction, _ in clip_prompts(8)] == [*DIRECTIONS] * 2
    assert all(motion_is_held_out(prompt) for _, prompt in clip_prompts(8))
    assert evaluate(Painter(suite), suite).scores["clip"] == {**dict.fromkeys(DIRECTIONS, 1.0), "score": 1.0}
    report = evaluate(Careless(suite), suite)
    assert report.scores["clip"] == {"left": 0.0, "right": 1.0, "top": 1.0, "bottom": 1.0, "score": 0.75}
    assert len(report.details["clips"]) == 8
    assert "clip" not in evaluate(Painter(suite), Suite(pictures=1, questions=1)).scores


def test_animations_begin_with_their_pictures():
    suite = Suite(pictures=1, questions=1, animations=12)
    report = evaluate(Painter(suite), suite)
    assert report.scores["animation"] == {**dict.fromkeys(DIRECTIONS, 1.0), "score": 1.0}
    assert len(report.details["animations"]) == 12
    assert evaluate(Careless(suite), suite).scores["animation"]["score"] == 0.0


def test_questions_about_clips_are_of_held_out_motions():
    suite = Suite(pictures=1, questions=1, clip_questions=9)
    asked = clip_questions(suite)
    assert [sum(test[0] == kind for test in asked) for kind in CLIP_KINDS] == [9] * len(CLIP_KINDS)
    assert {len(frames) for _, _, _, frames in asked} == {17}
    assert len({answer for kind, _, answer, _ in asked if kind == "direction"}) > 2
    for kind, _, answer, frames in asked:
        if kind == "direction":
            (first,), (last,) = detect(frames[0]), detect(frames[-1])
            dx, dy = DIRECTIONS[answer]
            assert (last.x - first.x) * dx + (last.y - first.y) * dy > 0.25
    report = evaluate(Painter(suite), suite)
    assert report.scores["clip_question"] == {**dict.fromkeys(CLIP_KINDS, 1.0), "score": 1.0}
    assert len(report.details["clip_questions"]) == 27
    assert evaluate(Careless(suite), suite).scores["clip_question"]["score"] == 0.0


def test_stories_are_told_on_demand_and_judged_whole():
    suite = Suite(pictures=1, questions=1, stories=30)
    beginnings = [text for _, text in story_beginnings(suite)]
    assert len(set(beginnings)) == 30 and all(map(is_held_out, beginnings))
    report = evaluate(Painter(suite), suite)
    assert report.scores["story"]["score"] == 1.0 and report.parts["stories"][0].image.size == (128, 64)
    careless = evaluate(Careless(suite), suite).parts["stories"]
    assert [story.right for story in careless] == [" red " in story.prompt for story in careless]
    assert "story" not in evaluate(Painter(suite), Suite(pictures=1, questions=1)).scores
