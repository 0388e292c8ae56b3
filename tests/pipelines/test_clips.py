"""Clips are what PyAV shows at the same times, and no video can hang, kill or outgrow the process that asked."""

import io
import os
import signal
import threading
import time

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clips import Clip, ClipLimits, ClipReader
from pipelines.decoding import FRAMES, SPAN, STEP, Unusable, choose
from pipelines.probe import ProbeError
from tests.pipelines.videos import CARPHONE, REAL, make_video, turned

UID = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def reader():
    clips = ClipReader()
    yield clips
    clips.close()


def shown(data: bytes) -> tuple[np.ndarray, list[np.ndarray]]:
    """All frames by PyAV, with their times: the reference."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return np.array([time for time, _ in frames]), [frame for _, frame in frames]


def assert_is_shown(clip: Clip, data: bytes) -> None:
    """Every frame is PyAV's at the same time, and the one on screen at every eighth of a second."""
    times, frames = shown(data)
    indices = [int(np.abs(times - time).argmin()) for time in clip.times]
    assert np.abs(times[indices] - clip.times).max() < 1e-4
    for index, frame in zip(indices, clip.frames, strict=True):
        assert np.array_equal(frames[index], frame)
    assert indices == choose(times, UID, 0) and len(indices) == FRAMES


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_videos_give_pyavs_frames_at_the_same_times(reader, path):
    assert_is_shown(reader.read(path.read_bytes(), UID), path.read_bytes())


def test_both_decoders_give_the_same_clip(reader, monkeypatch):
    data = CARPHONE.read_bytes()
    first = reader.read(data, UID)
    monkeypatch.setattr("pipelines.decoding.DECODERS", {"pyav": None})
    second = reader.read(data, UID)
    assert (first.decoder, second.decoder) == ("decord", "pyav")
    assert np.array_equal(first.frames, second.frames) and np.allclose(first.times, second.times, atol=1e-5)


def test_uid_and_draw_place_the_window(reader):
    data = CARPHONE.read_bytes()
    first, again, other = (reader.read(data, UID, draw) for draw in (0, 0, 1))
    assert first.times == again.times != other.times != reader.read(data, "f" * 32).times


def test_variable_frame_rate(reader):
    rng = np.random.default_rng(0)
    data = make_video(np.cumsum(rng.choice([0.02, 0.04, 0.11, 0.2], 60)))
    assert_is_shown(reader.read(data, UID), data)


def test_rotated_video_comes_upright(reader):
    data = CARPHONE.read_bytes()
    plain, upright = reader.read(data, UID), reader.read(turned(data, 176, 144), UID)
    assert np.array_equal(np.rot90(plain.frames, -1, (1, 2)), upright.frames)
    assert [reader.probe(turned(data, 176, 144))[side] for side in ("width", "height")] == [144, 176]


def test_pyav_takes_over_what_decord_cannot_read(reader):
    data = make_video(np.arange(60) / 24, codec="libsvtav1")  # newer than decord's FFmpeg
    clip = reader.read(data, UID)
    assert clip.decoder == "pyav" and clip.frames.shape == (17, 48, 64, 3)


@pytest.mark.parametrize(("data", "error"), [
    (b"", "undecodable"), (b"<html>404</html>" * 99, "undecodable"), (CARPHONE.read_bytes()[:300_000], "undecodable"),
    (make_video(np.arange(30) / 24), "too_short"), (make_video([0.0]), "too_short"),
], ids=["empty", "page", "cut", "short", "one_frame"])
def test_unusable_files_have_a_class_and_the_next_one_works(reader, data, error):
    with pytest.raises(ProbeError) as caught:
        reader.read(data, UID)
    assert caught.value.error == error and caught.value.detail
    assert reader.read(CARPHONE.read_bytes(), UID).frames.shape == (17, 144, 176, 3)


def test_endless_decoding_is_ended():
    clips = ClipReader(ClipLimits(seconds=0.05))  # less than the child needs to start
    began = time.monotonic()
    with pytest.raises(ProbeError) as caught:
        clips.read(CARPHONE.read_bytes(), UID)
    assert caught.value.error == "decode_timeout" and time.monotonic() - began < 20
    assert clips._child is None


def test_memory_has_a_limit():
    clips = ClipReader(ClipLimits(memory=512 << 20))
    with pytest.raises(ProbeError) as caught:
        clips.read(make_video(np.arange(60) / 24, size=(2048, 2048)), UID)
    assert caught.value.error in ("decoder_died", "out_of_memory", "undecodable")
    clips.close()


def test_frames_have_a_budget():
    clips = ClipReader(ClipLimits(max_pixels=1000))
    with pytest.raises(ProbeError, match="too_many_pixels: frames of 176x144"):
        clips.read(CARPHONE.read_bytes(), UID)
    clips.close()


def test_a_decoder_that_dies_is_replaced():
    clips = ClipReader()
    clips.read(CARPHONE.read_bytes(), UID)
    os.kill(clips._child.pid, signal.SIGSTOP)  # so that the death comes while it is asked
    threading.Timer(0.3, os.kill, (clips._child.pid, signal.SIGKILL)).start()
    assert clips.read(CARPHONE.read_bytes(), UID).decoder == "pyav"
    clips.close()


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1.0), min_size=3, max_size=300), st.integers(0, 5))
def test_the_frame_on_screen_is_chosen_for_every_time(gaps, draw):
    stamps = np.cumsum(gaps)
    try:
        chosen = choose(stamps, UID, draw)
    except Unusable:
        assert stamps[-1] - stamps[0] < SPAN
        return
    assert len(chosen) == FRAMES and chosen == sorted(chosen) and chosen[0] >= 0
    # There is one start from which each chosen frame is on screen at its time.
    ends = np.append(stamps[1:], np.inf)
    late = max(stamps[i] - STEP * k for k, i in enumerate(chosen)) - 2e-3
    early = min(ends[i] - STEP * k for k, i in enumerate(chosen))
    assert late < early
