"""The suite `shapes`: six GenEval-like categories of prompts, five kinds of questions, all held out from training.

Every prompt and every scene asked about belongs to the held-out quarter of the world, so the scores measure new
combinations. Clips, of held-out motions, from nothing or from a first picture, and stories, from held-out beginnings, are
drawn on demand: most models have seen none. Nothing is drawn by chance but the noise of the pictures, which depends on the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from PIL import Image

from showo2.evaluate.moving import judge_animation, judge_clip, judge_story
from showo2.evaluate.shapes import Detected, detect, judge
from showo2.movies import CLIP_RATE
from showo2.tiny.moving import (
    DIRECTIONS,
    SECONDS,
    draw_motion,
    first_picture,
    motion_prompts,
    parse_motion,
    story_prompts,
)
from showo2.tiny.questions import motion_questions, questions
from showo2.tiny.render import render
from showo2.tiny.words import PLACES
from showo2.tiny.world import CATEGORIES, draw_scene, parse, prompts

KINDS = {"colour": "what colour", "shape": "what shape", "place": "where is", "count": "how many", "relation": "is the"}
CLIP_KINDS = {"direction": "where does", "colour": "what colour", "shape": "what shape"}
SCENE_SIZE, CLIP_SIZE = 512, 128
# Of each part of the suite: its name among the scores, and what its shares are of.
PARTS = {"pictures": ("picture", CATEGORIES), "questions": ("question", tuple(KINDS)), "clips": ("clip", tuple(DIRECTIONS)),
         "animations": ("animation", tuple(DIRECTIONS)), "clip_questions": ("clip_question", tuple(CLIP_KINDS)),
         "stories": ("story", PLACES)}
_SCENES_SEED = 20250618
Shown = Image.Image | list[Image.Image]
S = TypeVar("S", Image.Image, list[Image.Image])
Question = tuple[str, str, str, S]  # kind, question, answer, and the picture or the frames of a clip
Drawing = tuple[list[tuple[str, str]], Callable[[], S]]  # the questions about something, and how it is shown
Done = Callable[[int], None]


class Model(Protocol):
    """What the suite needs of a pipeline (`showo2.generate.Showo2Pipeline` is one)."""

    @property
    def checkpoint_hash(self) -> str:
        """Hash of all weights."""

    def image(self, prompts: Sequence[str], guidance: float, points: int, seed: int, *, batch: int,
              on_batch: Callable[[int], None] | None) -> list[Image.Image]:
        """One picture a prompt."""

    def video(self, prompts: Sequence[str], guidance: float, points: int, seed: int, *, batch: int,
              on_batch: Callable[[int], None] | None) -> list[list[Image.Image]]:
        """The frames of one clip a prompt."""

    def animate(self, images: Sequence[Image.Image], prompts: Sequence[str], guidance: float, points: int, seed: int, *,
                batch: int, on_batch: Callable[[int], None] | None) -> list[list[Image.Image]]:
        """The frames of one clip a picture and prompt, which begins with the picture."""

    def stories(self, histories: Sequence[str], guidance: float, points: int, seed: int, *, batch: int,
                on_batch: Callable[[int], None] | None) -> list[list[str | Image.Image]]:
        """The texts and pictures that follow each beginning."""

    def answer(self, images: Sequence[Shown], questions: Sequence[str], max_new_tokens: int, *,
               batch: int) -> list[str]:
        """One answer a picture, or the frames of a clip, and question."""


@dataclass(frozen=True)
class Suite:
    """How much is asked, and how it is drawn; the defaults are those of every score in the documents."""

    pictures: int = 48
    """of each category; its held-out prompts take turns"""
    questions: int = 48
    """of each kind"""
    clips: int = 0
    """of motions; held-out ones take turns"""
    animations: int = 0
    """clips that begin with a picture; held-out motions take turns"""
    clip_questions: int = 0
    """about clips, of each kind"""
    stories: int = 0
    """from first texts; held-out ones take turns"""
    guidance: float = 4.0
    """strength of classifier-free guidance; 1 is none"""
    points: int = 20
    """points of the time grid, one more than Euler steps"""
    seed: int = 0
    """picture i's noise depends on (seed, i) alone"""
    batch: int = 48
    """pictures drawn, or questions answered, together"""

    @property
    def totals(self) -> dict[str, int]:
        """How many there are of each part."""
        each = {"pictures": len(CATEGORIES), "questions": len(KINDS), "clip_questions": len(CLIP_KINDS)}
        return {part: getattr(self, part) * each.get(part, 1) for part in PARTS}

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.questions < 1:
            raise ValueError(f"pictures={self.pictures}, questions={self.questions}: ask for 1 or more of each")


@dataclass(frozen=True)
class Drawn:
    """Something drawn and its verdict; `seen` names what the judge found in it.

    `image` of a clip is its last frame, of a story its pictures side by side, and `seen` its texts.
    """

    kind: str
    prompt: str
    right: bool
    seen: list[str]
    image: Image.Image

    @property
    def told(self) -> dict[str, Any]:
        """What the file of scores says of it."""
        return {"category": self.kind, "prompt": self.prompt, "right": self.right, "seen": self.seen}


@dataclass(frozen=True)
class Asked:
    """A question about a rendered scene or clip (`image`: its last frame), and its answer."""

    kind: str
    question: str
    expected: str
    answer: str
    image: Image.Image

    @property
    def right(self) -> bool:
        """Whether the answer is the expected one, letter case and a full stop aside."""
        return self.answer.strip().rstrip(".").lower() == self.expected

    @property
    def told(self) -> dict[str, Any]:
        """What the file of scores says of it."""
        return {"kind": self.kind, "question": self.question, "expected": self.expected, "answer": self.answer,
                "right": self.right}


Items = Sequence[Drawn] | Sequence[Asked]


@dataclass(frozen=True)
class Report:
    """Everything that was drawn and asked: by the field of `Suite` that asks for it, in the order of the pictures' numbers."""

    parts: dict[str, Items]
    manifest: dict[str, Any]

    @property
    def scores(self) -> dict[str, Any]:
        """`{"picture": {category: share right, "score": mean}, "question": {kind: ..., "score"}, "manifest": ...}`.

        Where the suite asks for them also "clip" and "animation", by direction, "clip_question", by kind, and "story", by
        the first text's place.
        """
        shares = {name: _shares(kinds, [(item.kind, item.right) for item in self.parts[part]])
                  for part, (name, kinds) in PARTS.items() if self.parts[part]}
        return {**shares, "manifest": self.manifest}

    @property
    def details(self) -> dict[str, Any]:
        """Each prompt with what was seen, each question with its answer."""
        return {part: [item.told for item in items] for part, items in self.parts.items()}


def picture_prompts(suite: Suite) -> list[tuple[str, str]]:
    """(category, prompt) of every picture: each category's held-out prompts in turn."""
    chosen = []
    for category in CATEGORIES:
        held_out = prompts(category, held_out=True)
        chosen += [(category, held_out[i % len(held_out)]) for i in range(suite.pictures)]
    return chosen


def scene_questions(suite: Suite) -> list[Question[Image.Image]]:
    """Every question about a picture: one a held-out scene, `suite.questions` of each kind."""
    def drawn(rng: random.Random) -> Drawing[Image.Image]:
        scene = draw_scene(rng, held_out=True)
        return questions(scene, rng), partial(render, scene, SCENE_SIZE)

    return _of_each_kind(KINDS, suite.questions, drawn)


def clip_questions(suite: Suite) -> list[Question[list[Image.Image]]]:
    """Every question about a clip: one a held-out motion, `suite.clip_questions` of each kind."""
    def drawn(rng: random.Random) -> Drawing[list[Image.Image]]:
        motion, start = draw_motion(rng, held_out=True), rng.random() / SECONDS
        shares = [start + frame / (CLIP_RATE * SECONDS) for frame in range(17)]
        return motion_questions(motion, rng), lambda: [render(motion.at(share), CLIP_SIZE) for share in shares]

    return _of_each_kind(CLIP_KINDS, suite.clip_questions, drawn)


def _of_each_kind(kinds: dict[str, str], count: int, drawn: Callable[[random.Random], Drawing[S]]) -> list[Question[S]]:
    """So many questions of each kind, at most one about each thing that is `drawn`.

    A kind is asked about whatever has such a question, so that its easy things weigh as much as in the world: were the
    kinds to share what is drawn, colours would be left those things that leave nothing else to ask.
    """
    rng = random.Random(_SCENES_SEED)
    chosen: list[Question[S]] = []
    for kind, words in kinds.items():
        missing = count
        while missing:
            asked, show = drawn(rng)
            of_kind = [(question, answer) for question, answer in asked if question.startswith(words)]
            if of_kind:
                question, answer = of_kind[0]
                chosen.append((kind, question, answer, show()))
                missing -= 1
    return chosen


def clip_prompts(clips: int) -> list[tuple[str, str]]:
    """(direction, prompt) of so many clips: the held-out motions of each direction in turn."""
    prompts = motion_prompts(held_out=True)
    by_direction = {d: [p for p in prompts if parse_motion(p)[1] == d] for d in DIRECTIONS}
    turns = [(d, by_direction[d][i % len(by_direction[d])]) for i in range(clips) for d in DIRECTIONS]
    return turns[:clips]


def story_beginnings(suite: Suite) -> list[tuple[str, str]]:
    """(place, first text) of every story: the held-out ones in turn."""
    prompts = story_prompts(held_out=True)
    return [(str(parse(text).place), text) for text in (prompts[i % len(prompts)] for i in range(suite.stories))]


def evaluate(model: Model, suite: Suite, on_done: Callable[[str, int], None] = lambda part, count: None) -> Report:
    """Draw, judge, ask. `on_done(part, n)` hears of n more that are done of a part: a field of `Suite`."""
    makers: dict[str, Callable[[Model, Suite, Done], Items]] = {
        "pictures": _pictures, "questions": _questions, "clips": _clips, "animations": _animations,
        "clip_questions": _clip_questions, "stories": _stories}
    parts = {part: make(model, suite, partial(on_done, part)) for part, make in makers.items()}
    drawn, asked = ([item.told for item in parts[part]] for part in ("pictures", "questions"))
    return Report(parts, {
        "suite": "shapes", "checkpoint_hash": model.checkpoint_hash, **asdict(suite),
        "prompts_hash": _hash([(told["category"], told["prompt"]) for told in drawn]),
        "questions_hash": _hash([(told["kind"], told["question"], told["expected"]) for told in asked])})


def _pictures(model: Model, suite: Suite, on_batch: Done) -> list[Drawn]:
    asked_for = picture_prompts(suite)
    images = model.image([prompt for _, prompt in asked_for], suite.guidance, suite.points, suite.seed,
                         batch=suite.batch, on_batch=on_batch)
    return [_judged(category, prompt, image) for (category, prompt), image in zip(asked_for, images, strict=True)]


def _questions(model: Model, suite: Suite, on_batch: Done) -> list[Asked]:
    return _asked(model, suite, scene_questions(suite), on_batch)


def _clip_questions(model: Model, suite: Suite, on_batch: Done) -> list[Asked]:
    return _asked(model, suite, clip_questions(suite), on_batch)


def _asked(model: Model, suite: Suite, tests: Sequence[Question[S]], on_batch: Done) -> list[Asked]:
    asked: list[Asked] = []
    for start in range(0, len(tests), suite.batch):
        part = tests[start:start + suite.batch]
        answers = model.answer([t[3] for t in part], [t[1] for t in part], 16, batch=suite.batch)
        asked += [Asked(kind, question, expected, answer, shown if isinstance(shown, Image.Image) else shown[-1])
                  for (kind, question, expected, shown), answer in zip(part, answers, strict=True)]
        on_batch(len(part))
    return asked


def _clips(model: Model, suite: Suite, on_batch: Done) -> list[Drawn]:
    motions = clip_prompts(suite.clips)
    clips = model.video([prompt for _, prompt in motions], suite.guidance, suite.points, suite.seed,
                        batch=_clips_together(suite), on_batch=on_batch) if motions else []
    return [_moved(direction, prompt, frames, judge_clip(prompt, frames))
            for (direction, prompt), frames in zip(motions, clips, strict=True)]


def _animations(model: Model, suite: Suite, on_batch: Done) -> list[Drawn]:
    motions, rng = clip_prompts(suite.animations), random.Random(_SCENES_SEED)
    begin = [first_picture(prompt, rng, SCENE_SIZE) for _, prompt in motions]
    clips = model.animate(begin, [prompt for _, prompt in motions], suite.guidance, suite.points, suite.seed,
                          batch=_clips_together(suite), on_batch=on_batch) if motions else []
    return [_moved(direction, prompt, frames, judge_animation(prompt, picture, frames))
            for (direction, prompt), picture, frames in zip(motions, begin, clips, strict=True)]


def _clips_together(suite: Suite) -> int:
    return max(1, suite.batch // 5)


def _moved(direction: str, prompt: str, frames: list[Image.Image], right: bool) -> Drawn:
    return Drawn(direction, prompt, right, _names(detect(frames[-1])), frames[-1])


def _stories(model: Model, suite: Suite, on_batch: Done) -> list[Drawn]:
    beginnings = story_beginnings(suite)
    told = model.stories([text for _, text in beginnings], suite.guidance, suite.points, suite.seed, batch=suite.batch,
                         on_batch=on_batch) if beginnings else []
    return [_judged_story(place, text, parts) for (place, text), parts in zip(beginnings, told, strict=True)]


def _judged(category: str, prompt: str, image: Image.Image) -> Drawn:
    found = detect(image)
    return Drawn(category, prompt, judge(parse(prompt), found), _names(found), image)


def _judged_story(place: str, beginning: str, parts: list[str | Image.Image]) -> Drawn:
    pictures = [part for part in parts if isinstance(part, Image.Image)]
    texts = [part for part in parts if isinstance(part, str)]
    if parts and isinstance(parts[0], str):  # the beginning was told further
        parts = [f"{beginning} {parts[0]}", *parts[1:]]
    else:
        parts = [beginning, *parts]
    return Drawn(place, beginning, judge_story(parts), texts, _side_by_side(pictures))


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """One strip; a black pixel where there are none."""
    strip = Image.new("RGB", (sum(p.width for p in pictures) or 1, max((p.height for p in pictures), default=1)))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * picture.width, 0))
    return strip


def _names(found: Sequence[Detected]) -> list[str]:
    return [f"{d.colour or 'unknown'} {d.shape or 'thing'}" for d in found]


def _shares(names: Sequence[str], verdicts: list[tuple[str, bool]]) -> dict[str, float]:
    """Names that nothing was asked of are left out."""
    shares = {}
    for name in names:
        if own := [right for verdict, right in verdicts if verdict == name]:
            shares[name] = sum(own) / len(own)
    return {**shares, "score": sum(shares.values()) / len(shares)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
