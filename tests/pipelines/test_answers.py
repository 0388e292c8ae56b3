"""What will do as a caption: no boilerplate in front, nothing that goes in circles."""

import pytest

from pipelines.answers import Answer, check, repeats, without_lead


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("The image shows a red circle on grey.", "A red circle on grey."),
        ("In this picture, we can see two dogs.", "Two dogs."),
        ("This photograph depicts: an old bridge.", "An old bridge."),
        ("Sure! Here is a caption: a boat at sea.", "A boat at sea."),
        ("the image features a cat", "a cat"),
        ("A red circle. The image shows more.", "A red circle. The image shows more."),
        ("The imagination of a child", "The imagination of a child"),
    ],
)
def test_leads_are_removed(said, caption):
    assert without_lead(said) == caption


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("a red circle", "stop", 3), "stop"),
        (Answer("a red circle left of", "length", 5), "length"),
        (Answer("", "stop", 0), "failed:empty_caption"),
        (Answer("The image shows ", "stop", 3), "failed:empty_caption"),
        (Answer("circle", "stop", 1), "failed:short_caption"),
        (Answer("a tree and " * 9, "length", 27), "failed:repetition"),
        (Answer(None, "failed:http_400", 0), "failed:http_400"),
    ],
)
def test_checks(answer, reason):
    text, found = check(answer)
    assert found == reason and (text is None) == reason.startswith("failed")


def test_a_list_is_no_repetition():
    assert not repeats("a red circle, a blue circle, a green circle, a yellow circle and a pink circle")
    assert repeats("very very " * 12)
