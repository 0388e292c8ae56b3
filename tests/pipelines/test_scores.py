"""What a scorer may look at: no measure of pictures is given a video."""

import pytest

from pipelines.scores import Scorer, measurable


@pytest.mark.parametrize(("scorer", "kinds"), [
    ("video", ["video", "video_conversation"]), ("pixels", ["pair", "conversation"]), ("text", ["pair", "video", "text"])])
def test_each_scorer_takes_its_kinds(scorer, kinds):
    rows = [{"kind": kind, "error": None, "pictures": None}
            for kind in ("pair", "conversation", "video", "video_conversation", "text", "damage")]
    assert [row["kind"] for row in measurable(Scorer(scorer), rows)] == kinds
    assert not measurable(Scorer(scorer), [{**row, "error": "truncated"} for row in rows])
