"""Clips of videos: 17 frames of a random window of 2 s, every third frame at 24 a second, chosen by their stamps.

Decoders meet hostile files, so they run in a child process that is killed when its time or memory is over
(`pipelines.decoding`). decord decodes; where it fails, hangs or dies, PyAV takes over.
"""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import decoding
from pipelines.probe import ProbeError

EXTENSIONS = ("mp4", "webm", "mkv", "mov", "avi", "m4v")
# What another decoder would not change.
_FINAL = ("too_short", "too_many_pixels", "no_video")


@dataclass(frozen=True)
class ClipLimits:
    """Budgets of one attempt to decode. `memory`: address space of the process, bytes; `max_pixels`: of a frame."""

    seconds: float = 60.0
    memory: int = 4 << 30
    max_pixels: int = 4096 * 2304


@dataclass(frozen=True)
class Clip:
    """frames: (17, H, W, 3) uint8 RGB, upright. times: of each, seconds from the container's zero."""

    frames: NDArray[np.uint8]
    times: tuple[float, ...]
    decoder: str


class ClipReader:
    """Decodes one video after the other in a child process, which is started anew after a death."""

    def __init__(self, limits: ClipLimits = ClipLimits()):
        self.limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    def probe(self, data: bytes) -> dict[str, Any]:
        """{"width", "height" (upright), "seconds", "format"} of a video file's bytes. Raises ProbeError."""
        return self._ask({"decoder": "none"}, data)[0]

    def read(self, data: bytes, uid: str, draw: int = 0) -> Clip:
        """The clip number `draw` of a video file's bytes: a function of (uid, draw).

        Raises ProbeError: too_short, too_many_pixels, no_video, undecodable, decode_timeout, decoder_died,
        out_of_memory.
        """
        header, pixels, decoder = self._decoded({"uid": uid, "draw": draw}, data)
        frames = np.frombuffer(pixels, np.uint8).reshape(header["shape"])
        return Clip(frames, tuple(header["times"]), decoder)

    def look(self, data: bytes) -> NDArray[np.float32]:
        """Small frames (windows, 17, h, w) of a video file's bytes, brightness 0 to 255: windows all over it.

        Frames are as far apart as a clip's. Raises ProbeError as `read`.
        """
        header, pixels, _ = self._decoded({}, data)
        return np.frombuffer(pixels, np.float32).reshape(header["shape"])

    def close(self) -> None:
        """End the child process."""
        if self._child and self._link:
            self._link.close()
            self._child.kill()
            self._child.wait()
        self._child = self._link = None

    def _decoded(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytearray, str]:
        """The answer of the first decoder that has one, and its name."""
        failures = []
        for decoder in decoding.DECODERS:
            asked = {**request, "decoder": decoder, "max_pixels": self.limits.max_pixels}
            try:
                return *self._ask(asked, data), decoder
            except ProbeError as error:
                if error.error in _FINAL:
                    raise
                failures.append((decoder, error))
        told = "; ".join(f"{decoder}: {error.detail or error.error}" for decoder, error in failures)
        raise ProbeError(failures[-1][1].error, told)

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytearray]:
        link = self._start()
        link.settimeout(self.limits.seconds)
        began = time.monotonic()
        try:
            decoding.send(link, request, data)
            link.settimeout(max(0.01, self.limits.seconds - (time.monotonic() - began)))
            header, pixels = decoding.receive(link)
        except TimeoutError as error:
            self.close()
            raise ProbeError("decode_timeout", f"{self.limits.seconds:g} s are over") from error
        except (EOFError, ConnectionError) as error:
            code = self._child.wait() if self._child else None
            self.close()
            raise ProbeError("decoder_died", f"exit status {code}") from error
        if "error" in header:
            raise ProbeError(header["error"], header["detail"])
        return header, pixels

    def _start(self) -> socket.socket:
        if self._link is None:
            self._link, theirs = socket.socketpair()
            # -P: the folder of this file is no place to import from.
            command = [sys.executable, "-P", decoding.__file__, str(theirs.fileno()), str(self.limits.memory)]
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                           env={**os.environ, **threads})
            theirs.close()
        return self._link
