"""What a picture's header says: format, size, mode, animation, orientation. Pixels are never decoded.

The four formats of the web are parsed here, byte by byte, because that costs microseconds, allocates nothing
that a hostile header could inflate, and tells a cut file from a whole one. Anything else is left to Pillow's
lazy open.

A file counts as truncated when its own structure says that bytes are missing: a JPEG without an end-of-image
marker behind its scan data, a PNG without IEND, a GIF without trailer, a WebP shorter than its RIFF size.
Damage inside complete pixel data shows only to a decoder, and is accounted where one runs.
"""

import io
import struct
import warnings
from dataclasses import dataclass

from PIL import Image

FORMATS_BY_PILLOW = ("BMP", "TIFF", "PPM")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


class ProbeError(Exception):
    """A picture that cannot be used; `error` is its class in the ledger."""

    def __init__(self, error: str, detail: str = "") -> None:
        super().__init__(f"{error}: {detail}")
        self.error = error
        self.detail = detail


@dataclass(frozen=True)
class Probe:
    """`width` x `height` in stored pixels; `orientation` is EXIF's 1 to 8 (1: upright)."""

    format: str
    width: int
    height: int
    mode: str
    animated: bool = False
    orientation: int = 1


def probe(data: bytes, max_pixels: int = 100_000_000) -> Probe:
    """Read the header of a whole encoded picture.

    Raises ProbeError with one of: empty_file, not_an_image, truncated, broken_header, too_many_pixels.
    """
    if not data:
        raise ProbeError("empty_file", "0 bytes")
    try:
        found = _parse(data)
    except (struct.error, IndexError) as error:
        raise ProbeError("truncated", f"the file ends inside its header ({len(data)} bytes)") from error
    if found.width < 1 or found.height < 1:
        raise ProbeError("broken_header", f"size {found.width}x{found.height}")
    if found.width * found.height > max_pixels:
        raise ProbeError("too_many_pixels", f"{found.width}x{found.height} is over {max_pixels:,}")
    return found


def _parse(data: bytes) -> Probe:
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif(data)
    return _by_pillow(data)


# Frame headers: all SOFn except DHT (c4), JPG (c8) and DAC (cc).
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


def _jpeg(data: bytes) -> Probe:
    size, components, position = None, 0, 2
    orientation: int | None = 1
    while True:
        while data[position] == 0xFF and data[position + 1] == 0xFF:
            position += 1  # fill bytes
        if data[position] != 0xFF:
            raise ProbeError("broken_header", f"no JPEG marker at byte {position}")
        marker = data[position + 1]
        if marker in (0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            position += 2
            continue
        if marker == 0xD9:
            raise ProbeError("truncated", "end of image before any scan")
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = position + 4
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, body + 1)
            size, components = (width, height), data[body + 5]
        elif marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[body + 6 : position + 2 + length]) or orientation
        elif marker == 0xDA:
            break
        position += 2 + length
    if size is None or components not in _JPEG_MODES:
        raise ProbeError("broken_header", "no usable frame header before the scan")
    # In scan data 0xff is always followed by 0 or a restart marker: an end marker behind its start is real.
    if data.rfind(b"\xff\xd9") <= position:
        raise ProbeError("truncated", f"no end-of-image marker in {len(data)} bytes")
    return Probe("jpeg", *size, _JPEG_MODES[components], False, orientation or 1)


_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


def _png(data: bytes) -> Probe:
    if data[12:16] != b"IHDR":
        raise ProbeError("truncated" if len(data) < 16 else "broken_header", "IHDR does not come first")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in _PNG_MODES:
        raise ProbeError("broken_header", f"PNG colour type {colour}")
    mode = _PNG_MODES[colour]
    if colour == 0 and depth in (1, 16):
        mode = "1" if depth == 1 else "I;16"
    animated, position = False, 8
    orientation: int | None = 1
    while data[position + 4 : position + 8] != b"IDAT":
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if kind == b"IEND":
            raise ProbeError("broken_header", "no pixel data")
        if kind == b"acTL":
            animated = struct.unpack_from(">I", data, position + 8)[0] > 1
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    if data.rfind(b"IEND", position) < 0:
        raise ProbeError("truncated", f"no IEND chunk in {len(data)} bytes")
    return Probe("png", width, height, mode, animated, orientation or 1)


def _webp(data: bytes) -> Probe:
    (riff,) = struct.unpack_from("<I", data, 4)
    kind = data[12:16]
    animated = False
    orientation: int | None = 1
    if kind == b"VP8X":
        flags = data[20]
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        mode, animated = "RGBA" if flags & 0x10 else "RGB", bool(flags & 0x02)
        orientation = _webp_orientation(data) if flags & 0x08 else 1
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        mode = "RGBA" if bits >> 28 & 1 else "RGB"
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        mode = "RGB"
    else:
        raise ProbeError("broken_header", f"WebP chunk {kind!r}")
    if len(data) < riff + 8:
        raise ProbeError("truncated", f"{len(data)} bytes where RIFF announces {riff + 8}")
    return Probe("webp", width, height, mode, animated, orientation or 1)


def _webp_orientation(data: bytes) -> int | None:
    position = 12
    while position + 8 <= len(data):
        kind, length = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        if kind == b"EXIF":
            return _exif_orientation(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    return None


def _gif(data: bytes) -> Probe:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames = 0
    while frames < 2 and data[position] != 0x3B:
        block = data[position]
        if block == 0x2C:
            frames += 1
            local = data[position + 9]
            position += 11 + (3 << (local & 7) + 1 if local & 0x80 else 0)
        elif block == 0x21:
            position += 2
        else:
            raise ProbeError("broken_header", f"no GIF block at byte {position}")
        while data[position]:
            position += 1 + data[position]
        position += 1
    if not frames:
        raise ProbeError("broken_header", "no frame")
    if b"\x3b" not in data[position:]:
        raise ProbeError("truncated", f"no trailer in {len(data)} bytes")
    return Probe("gif", width, height, "P", frames > 1)


def _exif_orientation(tiff: bytes) -> int | None:
    """Tag 0x0112 of the first directory of a TIFF block, or None: broken EXIF is no reason to lose a row."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112 and kind == 3 and 1 <= value <= 8:
                return value
    except struct.error:
        pass
    return None


def _by_pillow(data: bytes) -> Probe:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS_BY_PILLOW) as image:
                animated = getattr(image, "n_frames", 1) > 1
                return Probe(str(image.format).lower(), *image.size, image.mode, animated)
    except Image.UnidentifiedImageError as error:
        raise ProbeError("not_an_image", f"starts with {data[:12]!r}") from error
    except Image.DecompressionBombError as error:
        raise ProbeError("too_many_pixels", str(error)) from error
    # Pillow's parsers answer a broken header with nearly any exception.
    except Exception as error:
        raise ProbeError("broken_header", f"{type(error).__name__}: {error}") from error
