"""The child process that decodes videos for `pipelines.clips`; it may hang, die or run out of memory, alone.

Run as a script with the number of a socket and a limit of bytes of address space. A message is a length (4 bytes), JSON
of that length, and `size` raw bytes after it. Nothing but numpy and the decoders is imported, so it starts quickly.
"""

import hashlib
import io
import json
import resource
import socket
import struct
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES = 17
STEP = 3 / 24  # seconds: every third frame at 24 a second, so that 17 frames span 2 s at any rate
SPAN = STEP * (FRAMES - 1)
LOOKS = 8  # windows that are looked at, of a video of any length
LOOK_SIDE = 64  # pixels of the longer side of what is looked at


class Unusable(Exception):
    """A video that no decoder can help: `args` are the class of failure and a detail."""


def send(link: socket.socket, header: dict[str, Any], data: Any = b"") -> None:
    """Write a message; `data` is anything with bytes."""
    raw = json.dumps({**header, "size": memoryview(data).nbytes}).encode()
    link.sendall(struct.pack("<I", len(raw)) + raw)
    link.sendall(data)


def receive(link: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Read a message. Raises EOFError where the other side is gone."""
    header = json.loads(_exactly(link, struct.unpack("<I", _exactly(link, 4))[0]))
    return header, _exactly(link, header["size"])


def _exactly(link: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        read = link.recv_into(view[done:])
        if not read:
            raise EOFError("the other side is gone")
        done += read
    return data


def choose(stamps: NDArray[np.float64], uid: str, draw: int) -> list[int]:
    """Indices of 17 frames: a window of 2 s that (uid, draw) places, and in it the frame on screen at each time.

    stamps: when each frame appears, in seconds, ascending. Raises Unusable for a video of less than 2 s.
    """
    room = _room(stamps)
    digest = hashlib.blake2b(f"{uid}/{draw}".encode(), digest_size=8).digest()
    return _window(stamps, room * int.from_bytes(digest, "big") / 2**64)


def spread(stamps: NDArray[np.float64]) -> list[list[int]]:
    """As `choose`, of windows that lie evenly over the video: as many as cover it, but at most `LOOKS`."""
    room = _room(stamps)
    count = min(LOOKS, 1 + int(np.ceil(room / SPAN)))
    return [_window(stamps, start) for start in np.linspace(0, room, count)]


def _room(stamps: NDArray[np.float64]) -> float:
    """Seconds by which the video is longer than a window."""
    if len(stamps) < 2:
        raise Unusable("too_short", f"{len(stamps)} frames")
    # The last frame stays on screen for as long as frames do.
    length = float(stamps[-1] + np.median(np.diff(stamps)) - stamps[0])
    if length < SPAN:
        raise Unusable("too_short", f"{length:.2f} s; a clip needs {SPAN:g} s")
    return length - SPAN


def _window(stamps: NDArray[np.float64], start: float) -> list[int]:
    times = stamps[0] + start + STEP * np.arange(FRAMES)
    # A millisecond of grace: containers round their stamps.
    return (np.searchsorted(stamps, times + 1e-3, side="right") - 1).tolist()


def shrunk(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness (17, h, w), 0 to 255, of frames (17, H, W, 3), at about `LOOK_SIDE` pixels of the longer side."""
    count, height, width, _ = frames.shape
    side = max(1, max(height, width) // LOOK_SIDE)
    rows, columns = max(1, height // side), max(1, width // side)
    tiles = frames[:, : rows * side, : columns * side].reshape(count, rows, min(side, height), columns, min(side, width), 3)
    return tiles.mean((2, 4, 5), dtype=np.float32)


def by_decord(data: bytearray, chosen: list[int], ticks: list[int]) -> NDArray[np.uint8]:
    """Frames (17, H, W, 3), upright: by their numbers."""
    import decord  # which turns frames itself

    video = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
    if len(video) != len(ticks):
        raise ValueError(f"{len(video)} frames for {len(ticks)} stamps")
    return video.get_batch(chosen).asnumpy()


def by_pyav(data: bytearray, chosen: list[int], ticks: list[int]) -> NDArray[np.uint8]:
    """As `by_decord`: by their stamps, from the key frame before the window on."""
    import av

    wanted = {ticks[i] for i in chosen}
    frames: dict[int, NDArray[Any]] = {}
    turns = 0
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(ticks[chosen[0]], stream=stream)
        for frame in container.decode(stream):
            turns = _turns(frame)
            if frame.pts in wanted:
                frames[frame.pts] = frame.to_ndarray(format="rgb24")
            if len(frames) == len(wanted):
                break
    missing = wanted - frames.keys()
    if missing:
        raise ValueError(f"{len(missing)} of {len(wanted)} frames do not decode")
    return np.ascontiguousarray(np.rot90(np.stack([frames[ticks[i]] for i in chosen]), -turns, (1, 2)))


DECODERS = {"decord": by_decord, "pyav": by_pyav}


def stamps(data: bytearray, max_pixels: int) -> tuple[list[int], float]:
    """When each frame appears, in ticks, ascending, and the seconds of a tick: from the packets, without decoding.

    decord's own stamps are wrong where frames are reordered and the rate varies.
    """
    import av

    with av.open(io.BytesIO(data), "r") as container:
        stream = _video(container)
        if stream.width * stream.height > max_pixels:
            raise Unusable("too_many_pixels", f"frames of {stream.width}x{stream.height} are over {max_pixels:,}")
        ticks = {packet.pts for packet in container.demux(stream) if packet.pts is not None and packet.size}
        return sorted(ticks), float(stream.time_base)


def _video(container: Any) -> Any:
    if not container.streams.video:
        raise Unusable("no_video", "the file has no video stream")
    return container.streams.video[0]


def facts(data: bytearray) -> dict[str, Any]:
    """What the container says, without decoding more than one frame: upright size, seconds, codec."""
    import av

    with av.open(io.BytesIO(data), "r") as container:
        stream = _video(container)
        first = next(container.decode(stream), None)
        if first is None:
            raise Unusable("undecodable", "no frame decodes")
        width, height = (first.width, first.height)[:: -1 if _turns(first) % 2 else 1]
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        return {"width": width, "height": height, "seconds": seconds, "format": stream.codec.name}


def _turns(frame: Any) -> int:
    """Quarter turns clockwise that make a frame upright; its rotation is in degrees the other way."""
    return round(-frame.rotation / 90) % 4


def _serve(link: socket.socket) -> None:
    while True:
        request, data = receive(link)
        try:
            if request["decoder"] == "none":
                send(link, facts(data))
                continue
            ticks, tick = stamps(data, request["max_pixels"])
            seconds, decode = tick * np.array(ticks, np.float64), DECODERS[request["decoder"]]
            if "uid" not in request:
                looked = np.stack([shrunk(decode(data, chosen, ticks)) for chosen in spread(seconds)])
                send(link, {"shape": looked.shape}, looked.reshape(-1))
                continue
            chosen = choose(seconds, request["uid"], request["draw"])
            frames = decode(data, chosen, ticks)
            send(link, {"shape": frames.shape, "times": seconds[chosen].tolist()}, frames.reshape(-1))
        except Unusable as error:
            send(link, {"error": error.args[0], "detail": error.args[1]})
        except MemoryError:
            send(link, {"error": "out_of_memory", "detail": "the decoder's limit"})
        except Exception as error:  # noqa: BLE001 - decoders answer a broken file with nearly any exception
            send(link, {"error": "undecodable", "detail": f"{type(error).__name__}: {error}"[:200]})


if __name__ == "__main__":
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _serve(socket.socket(fileno=int(sys.argv[1])))
    except (EOFError, ConnectionError):
        pass  # The parent is gone.
