"""The exact judge of the world of shapes: what a picture shows, and whether that is what its prompt asked for.

No learned part: foreground is what differs from the background, an object is a connected piece of it, its colour the
palette's nearest in its inside, its shape the template (circle, square, triangle of equal area) that covers it best.
Anything that is not clearly one of these is an object of unknown colour or shape, and no prompt asks for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from showo2.tiny.world import BACKGROUND, COLOURS, SHAPES, Description, Object, Scene, parse, satisfies

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Larger pictures are averaged down to this side: contours stay exact to a fraction of a pixel.
SIDE = 128
# RGB distance from the background beyond which a pixel is foreground: 0.4 of the palest colour's (pink, 119).
FOREGROUND = 48.0
# An inside farther than this from every palette colour has no name (half the distance of red and orange is 51).
COLOUR_RADIUS = 50.0
# The smallest piece that counts as an object, as a share of the picture (the smallest drawn triangle has 0.024).
MINIMUM_AREA = 0.004
# Overlap (intersection over union) with the best template below which a piece has no shape. After SMOOTHING of both
# by a Gaussian of that many pixels, a blurred shape of the smallest size keeps 0.92; a diamond seen as a circle, or a
# square as a circle, has at most 0.86.
MINIMUM_OVERLAP = 0.88
SMOOTHING = 0.7
# A piece with a larger half size is a coloured ground, not an object (the largest drawn object has 0.18).
MAXIMUM_HALF_SIZE = 0.35
# A second colour counts as an object of its own from this share of a piece's inside.
SECOND_COLOUR = 0.12
_SUPERSAMPLING = 4
# Pixels around a piece that may still hold some of its colour.
_RIM = 2
# Area of a shape whose box has half size 1.
_UNIT_AREA = {"circle": np.pi, "square": 4.0, "triangle": 2.0}
_NAMES = list(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], dtype=np.float32)
_BACKGROUND = np.array(BACKGROUND, dtype=np.float32)


@dataclass(frozen=True)
class Detected:
    """One object in a picture; x, y (centre) and r (half size) are fractions of the picture's side, y downward.

    colour and shape are None where they are no palette colour and no known shape; overlap is the intersection over
    union with the shape's template.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    r: float
    overlap: float


def detect(image: Image.Image) -> list[Detected]:
    """All objects of a picture (at least 48 px a side), left to right."""
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    labels, _ = ndimage.label(_far(pixels, _BACKGROUND) > FOREGROUND)
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        top, left = (max(s.start - _RIM - 1, 0) for s in box)
        window = (slice(top, box[0].stop + _RIM + 1), slice(left, box[1].stop + _RIM + 1))
        found += _objects(pixels[window], labels[window], number, MINIMUM_AREA * height * width, left, top)
    side = max(height, width)
    scaled = [replace(d, x=d.x / width, y=d.y / height, r=d.r / side) for d in found]
    named = [replace(d, shape=None) if d.r > MAXIMUM_HALF_SIZE else d for d in scaled]
    return sorted(named, key=lambda d: (d.x, d.y))


def judge(description: Description, found: list[Detected]) -> bool:
    """Whether a picture shows exactly what was described: these objects and no others, there and so related."""
    objects = [Object(d.colour, d.shape, d.x, d.y, d.r) for d in found if d.colour and d.shape]
    return len(objects) == len(found) and satisfies(Scene(tuple(objects)), description)


def judge_picture(prompt: str, image: Image.Image) -> bool:
    """Whether `image` shows exactly what `prompt` (in the words of `tiny.world.describe`) asks for."""
    return judge(parse(prompt), detect(image))


def _pixels(image: Image.Image) -> Pixels:
    """RGB (H, W, 3) in 0..255, the longer side at most SIDE."""
    image = image.convert("RGB")
    longest = max(image.size)
    if min(image.size) < 48:
        raise ValueError(f"a picture of {image.size[0]}x{image.size[1]} px is too small to judge: use 48 px or more")
    if longest > SIDE:
        size = (round(image.width * SIDE / longest), round(image.height * SIDE / longest))
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def _far(pixels: Pixels, colour: Pixels) -> Pixels:
    """Euclidean RGB distance of pixels (..., 3) from one colour (3,), or from several (k, 3) as (..., k)."""
    if colour.ndim == 2:
        pixels = pixels[..., None, :]
    return np.sqrt(((pixels - colour) ** 2).sum(-1))


def _objects(pixels: Pixels, labels: NDArray[np.int32], number: int, smallest: float, left: int,
             top: int) -> list[Detected]:
    """The objects of connected piece `number` in a window of the picture whose corner is (left, top), in pixels."""
    piece = labels == number
    if piece.sum() < smallest:
        return []
    parts = _by_colour(pixels, piece, smallest)
    colours = [_name(np.median(pixels[_inside(part)], axis=0)) for part in parts]
    if len(parts) == 1:
        # The blurred rim belongs to the object, but never to two of them.
        parts = [ndimage.binary_dilation(piece, iterations=_RIM) & ((labels == 0) | piece)]
    return [_measure(pixels, c, part, left, top) for c, part in zip(colours, parts, strict=True)]


def _by_colour(pixels: Pixels, piece: Mask, smallest: float) -> list[Mask]:
    """A piece, or its parts by colour where objects of different colours touch."""
    nearest = _far(pixels[_inside(piece)], _PALETTE).argmin(-1)
    present = np.flatnonzero(np.bincount(nearest, minlength=len(_NAMES)) >= SECOND_COLOUR * len(nearest))
    if len(present) == 1:
        return [piece]
    owner = present[_far(pixels, _PALETTE[present]).argmin(-1)]
    parts = []
    for index in present:
        labels, count = ndimage.label(piece & (owner == index))
        parts += [labels == number for number in range(1, count + 1)]
    # Confetti of many colours stays one piece, of no shape.
    return [part for part in parts if part.sum() >= smallest] or [piece]


def _inside(piece: Mask) -> Mask:
    """The piece without its rim, whose pixels are blends with the background and resemble other colours."""
    depth = ndimage.distance_transform_edt(piece)
    return depth >= min(3.0, 0.5 * depth.max() + 0.5)


def _name(colour: Pixels) -> str | None:
    distances = _far(colour, _PALETTE)
    best = int(distances.argmin())
    return _NAMES[best] if distances[best] <= COLOUR_RADIUS else None


def _measure(pixels: Pixels, colour: str | None, region: Mask, left: int, top: int) -> Detected:
    """Shape, centre and half size (in pixels of the picture) of one object, from how much of each pixel it covers."""
    cover = ndimage.gaussian_filter(np.where(region, _coverage(pixels, colour), 0), SMOOTHING)
    ys, xs = np.mgrid[: cover.shape[0], : cover.shape[1]] + 0.5
    area = max(float(cover.sum()), 1.0)
    x, y = float((cover * xs).sum() / area), float((cover * ys).sum() / area)
    best = Detected(colour, None, x, y, 0.0, 0.0)
    for shape in SHAPES:
        r = float(np.sqrt(area / _UNIT_AREA[shape]))
        # A triangle's centroid lies a third of its half height below the middle of its box.
        middle = y - r / 3 if shape == "triangle" else y
        template = ndimage.gaussian_filter(_template(shape, x, middle, r, cover.shape), SMOOTHING)
        overlap = float(np.minimum(cover, template).sum() / np.maximum(cover, template).sum())
        if overlap > best.overlap:
            best = Detected(colour, shape if overlap >= MINIMUM_OVERLAP else None, x, middle, r, overlap)
    return replace(best, x=best.x + left, y=best.y + top)


def _coverage(pixels: Pixels, colour: str | None) -> Pixels:
    """Share (0..1) of each pixel that an object of `colour` covers: where it lies between background and colour."""
    if colour is None:
        return (_far(pixels, _BACKGROUND) > FOREGROUND).astype(np.float32)
    direction = _PALETTE[_NAMES.index(colour)] - _BACKGROUND
    return np.clip((pixels - _BACKGROUND) @ direction / (direction @ direction), 0, 1)


def _template(shape: str, x: float, y: float, r: float, size: tuple[int, ...]) -> Pixels:
    """Coverage, of `size` (height, width), of a shape whose box has its middle at (x, y) and half size r."""
    (height, width), s = size, _SUPERSAMPLING
    dx = ((np.arange(width * s) + 0.5) / s - x)[None, :]
    dy = ((np.arange(height * s) + 0.5) / s - y)[:, None]
    if shape == "circle":
        inside = dx**2 + dy**2 <= r**2
    elif shape == "square":
        inside = (abs(dx) <= r) & (abs(dy) <= r)
    else:
        inside = (abs(dy) <= r) & (abs(dx) <= (dy + r) / 2)
    return inside.reshape(height, s, width, s).mean((1, 3), dtype=np.float32)
