"""A stage that seems to hang says what it waits for."""

import time

from pipelines import progress
from pipelines.progress import StageProgress


def test_the_last_units_are_named_while_they_run(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.02)
    with StageProgress("facts", units=6) as stage:
        stage.expect(f"{number}.tar" for number in range(6))
        assert stage.still_running() == []
        for number in range(4):
            stage.advance(rows=10, name=f"{number}.tar")
        assert stage.still_running() == ["4.tar", "5.tar"]
        deadline = time.monotonic() + 20
        while "still running" not in (told := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
        stage.advance(name="4.tar")
        assert stage.still_running() == ["5.tar"]
    assert "still running after" in told and "4.tar, 5.tar" in told


def test_units_whose_start_was_told_are_named_with_their_seconds_the_longest_first(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with StageProgress("captions", units=6) as stage:
        for number in range(6):
            stage.begin(f"{number}.tar")
            now[0] += 10
        stage.begin("0.tar")  # a second time, on another worker
        assert stage.still_running() == ["0.tar (60 s)", "1.tar (50 s)", "2.tar (40 s)", "3.tar (30 s)"]
        stage.advance(name="0.tar")
        assert stage.still_running()[0] == "1.tar (50 s)"
