"""What moves, what stands and what is cut, in videos that were made for it and in real ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clips import ClipReader
from pipelines.decoding import FRAMES, LOOK_SIDE, LOOKS, SPAN, Unusable, shrunk, spread
from pipelines.measures import movement
from tests.pipelines.videos import REAL, make_video

RNG = np.random.default_rng(0)
SCENES = RNG.uniform(0, 255, (4, 24, 32)).astype(np.float32)


def panned(scene: np.ndarray, frames: int) -> np.ndarray:
    """A camera that moves by a column a frame over a smooth scene."""
    wide = np.cumsum(scene - scene.mean(), axis=1) / 4 + 128
    return np.stack([np.roll(wide, number, axis=1) for number in range(frames)])


def test_a_pan_moves_and_is_not_cut():
    found = movement(panned(SCENES[0], FRAMES)[None])
    assert found["cuts"] == 0 and found["frozen"] == 0 and found["motion"] > 5


def test_a_picture_that_stands_is_frozen():
    assert movement(np.repeat(SCENES[:2, None], FRAMES, 1)) == {"motion": 0, "cuts": 0, "frozen": 1}


def test_cuts_are_counted_and_are_no_motion():
    frames = np.repeat(SCENES[:1], FRAMES, 0)
    frames[5:], frames[11:] = SCENES[1], SCENES[2]
    assert movement(frames[None]) == {"motion": 0, "cuts": 2, "frozen": pytest.approx(14 / 16)}


def test_noise_is_motion_and_no_cut():
    found = movement(RNG.uniform(0, 255, (2, FRAMES, 24, 32)))
    assert found["cuts"] == 0 and found["motion"] > 60


def test_real_videos():
    with_cuts = {}
    reader = ClipReader()
    for path in REAL:
        looked = reader.look(path.read_bytes())
        assert looked.shape[1] == FRAMES and LOOK_SIDE // 2 < max(looked.shape[2:]) < 2 * LOOK_SIDE
        found = movement(looked)
        assert 2 < found["motion"] < 15 and found["frozen"] == 0, path.name
        with_cuts[path.stem] = found["cuts"]
    reader.close()
    # bikes.mp4 is cut five times; before one of them a car fills the picture, which changes as much as a cut.
    assert with_cuts == {"bigbuckbunny": 0, "bikes": 4, "carphone_distorted": 0, "carphone_pristine": 0}


def test_small_frames_are_means_of_brightness():
    frames = RNG.integers(0, 256, (FRAMES, 130, 200, 3), np.uint8)
    small = shrunk(frames)
    assert small.shape == (FRAMES, 43, 66) and small.dtype == np.float32
    assert small[3, 2, 5] == pytest.approx(frames[3, 6:9, 15:18].mean(), abs=1e-3)
    assert shrunk(frames[:, :1, :1]).shape == (FRAMES, 1, 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.01, 0.5), min_size=2, max_size=900))
def test_windows_cover_a_short_video_and_are_spread_over_a_long_one(steps):
    stamps = np.cumsum(steps)
    length = stamps[-1] - stamps[0] + np.median(np.diff(stamps))
    if length < SPAN:
        with pytest.raises(Unusable):
            spread(stamps)
        return
    windows = spread(stamps)
    assert len(windows) == min(LOOKS, int(np.ceil(length / SPAN - 1e-9)) or 1)
    assert all(len(window) == FRAMES and window == sorted(window) for window in windows)
    assert windows[0][0] == 0 and stamps[windows[-1][-1]] >= stamps[0] + length - max(steps) - 1e-2


def test_the_other_decoder_sees_the_same(monkeypatch):
    data, reader = make_video(np.arange(80) / 12), ClipReader()
    first = reader.look(data)
    monkeypatch.setattr("pipelines.decoding.DECODERS", {"pyav": None})
    second = reader.look(data)
    reader.close()
    assert first.shape == second.shape == (4, FRAMES, 48, 64) and np.array_equal(first, second)
