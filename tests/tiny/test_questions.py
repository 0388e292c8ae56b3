import random

from hypothesis import given
from hypothesis import strategies as st

from showo2.tiny import world
from showo2.tiny.questions import questions

seeds = st.integers(0, 2**32)


@given(seeds)
def test_questions_have_one_answer_each(seed):
    rng = random.Random(seed)
    scene = world.draw_scene(rng)
    asked = questions(scene, rng)
    assert asked and len({question for question, _ in asked}) == len(asked)
    assert all(answer.count(" ") <= 1 for _, answer in asked)
