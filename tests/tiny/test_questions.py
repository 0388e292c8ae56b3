import random

from hypothesis import given
from hypothesis import strategies as st

from showo2.tiny import world
from showo2.tiny.questions import NUMBER_OPENINGS, PLACE_OPENINGS, questions, untold

seeds = st.integers(0, 2**32)


@given(seeds)
def test_questions_have_one_answer_each(seed):
    rng = random.Random(seed)
    scene = world.draw_scene(rng)
    asked = questions(scene, rng)
    assert asked and len({question for question, _ in asked}) == len(asked)
    assert all(answer.count(" ") <= 1 for _, answer in asked)


@given(seeds)
def test_what_is_untold_names_no_look_twice_and_one_place_and_one_number(seed):
    scene, rng = world.draw_scene(random.Random(seed)), random.Random(seed)
    asked = questions(scene, rng)
    kept = untold(asked)
    assert kept[0] == asked[0] and [turn for turn in asked if turn in kept] == kept
    for openings in (PLACE_OPENINGS, NUMBER_OPENINGS):
        assert sum(question.startswith(openings) for question, _ in kept) <= 1
    for number, (question, answer) in enumerate(kept):
        before = " ".join(f"{q} {a}" for q, a in kept[:number])
        if question.startswith("what colour"):
            shape = question.rstrip("?s").split()[-1]
            assert f"{answer} {shape}" not in before and f"the {answer} object? {shape}" not in before
        if question.startswith("what shape"):
            colour = question.split()[-2]
            assert f"{colour} {answer}" not in before and f"{answer}? {colour}" not in before


def test_where_something_is_tells_its_look_and_how_things_lie():
    where, colour = ("where is the red circle?", "left"), ("what colour is the circle?", "red")
    shape, side = ("what shape is the red object?", "circle"), ("is the red circle left of the blue square?", "yes")
    other, count = ("what colour is the square?", "blue"), ("how many objects are there?", "two")
    assert untold([where, colour, shape, side, other, count]) == [where, other, count]
    assert untold([colour, shape, where, side]) == [colour, where]
    assert untold([side, other, colour, where]) == [side]
    assert untold([("how many circles are there?", "one"), count]) == [("how many circles are there?", "one")]
