"""Frames to mp4 files."""

import io
from collections.abc import Iterable
from typing import Any

import av
from PIL import Image

CLIP_RATE = 8  # frames a second of training clips: every third of 24


def mp4(frames: Iterable[Image.Image], rate: int, codec: str = "libx264", comment: str = "", **options: str) -> bytes:
    """Pictures of one size, both sides even, as an mp4 of `rate` frames a second; `options` are the codec's.

    Equal frames give equal bytes, whatever the machine's cores.
    """
    buffer = io.BytesIO()
    stream: Any = None
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = comment
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.width, stream.height = frame.size
                stream.codec_context.thread_count = 1
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        if stream is not None:
            container.mux(stream.encode())
    return buffer.getvalue()


def pictures(data: bytes) -> list[Image.Image]:
    """The frames of a movie, in order."""
    with av.open(io.BytesIO(data), "r") as container:
        return [frame.to_image() for frame in container.decode(video=0)]
