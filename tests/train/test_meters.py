"""The metrics file tells one story, whatever was cut off and done again."""

from showo2.train.meters import METRICS, Meters, last, read


def run(folder, start, stop, every=2):
    meters = Meters(folder, start, every, 5)
    for step in range(start + 1, stop + 1):
        meters.add(step, {"lr": 0.1}, {"samples_per_s": 8.0}, {"loss": float(step)})
    meters.close()
    return read(folder / METRICS)


def test_lines_hold_means_and_the_last_step_is_always_logged(tmp_path):
    lines = run(tmp_path, 0, 5)
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert all(line["samples_per_s"] > 0 and line["step_s"] > 0 for line in lines)
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_drops_what_will_be_done_again(tmp_path):
    run(tmp_path, 0, 4)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "lo')  # Killed while writing.
    assert [line["step"] for line in run(tmp_path, 2, 5)] == [2, 4, 5]


def test_events_stand_between_the_lines(tmp_path):
    meters = Meters(tmp_path, 0, 1, 5)
    meters.event(1, lost_rows=["row 3"])
    meters.close()
    assert read(tmp_path / METRICS) == [{"step": 1, "lost_rows": ["row 3"]}]


def test_the_last_line_is_found_without_reading_the_file(tmp_path):
    assert last(tmp_path / METRICS) is None
    run(tmp_path, 0, 5)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "lost_rows": ["x"]}\n{"step": 6, "lo')
    assert last(tmp_path / METRICS)["step"] == 5
