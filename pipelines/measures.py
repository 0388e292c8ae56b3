"""What a picture, a text or a video says without a model: contrast, writing, movement, fingerprints of likeness."""

import html
import re
import unicodedata

import imagehash
import numpy as np
import xxhash
from PIL import Image
from scipy import ndimage

SIDE = 256  # pixels of the shorter side at which pixels are measured
THUMB = 8
_BASE = 128  # pixels from which all pHashes of a picture are made
_PHASH = 32  # pixels that imagehash asks for
CROP = 0.05  # of a side: what a cropped copy may lack
_TILE = 16
_STROKE = 40  # of 255: a step of brightness between neighbours that writing makes
_SHINGLE = 4  # characters
# Mean change of brightness (of 255) from one small frame to the next, an eighth of a second later:
_CUT = 15.0  # the least that a cut makes,
_CUT_RATIO = 3.0  # and how many times the other changes of its window it is
_FROZEN = 0.25  # less than this is a picture that stands


def grey(image: Image.Image) -> np.ndarray:
    """(H, W) float32 brightness, 0 to 255, at `SIDE` pixels of the shorter side."""
    scale = SIDE / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), np.float32)


def sharpness(brightness: np.ndarray) -> float:
    """Variance of the Laplacian of (H, W) brightness: near 0 without edges."""
    return float(ndimage.laplace(brightness).var())


def text_density(brightness: np.ndarray) -> float:
    """Share of 16 x 16 tiles of (H, W) brightness with the many short strong steps, up and down, of writing."""
    steps = np.diff(brightness, axis=1)
    rows, columns = (size // _TILE * _TILE for size in steps.shape)
    tiles = steps[:rows, :columns].reshape(rows // _TILE, _TILE, columns // _TILE, _TILE)
    up, down = ((tiles * sign > _STROKE).sum((1, 3)) for sign in (1, -1))
    # A step every eighth pixel in each direction; a plain edge has them all in one.
    return float((np.minimum(up, down) >= _TILE * _TILE // 16).mean()) if tiles.size else 0.0


def crop_boxes(width: float, height: float) -> list[tuple[float, float, float, float]]:
    """Where a copy that lacks `CROP` of each side may have been cut: (left, top, right, bottom), 9 places."""
    dx, dy = CROP * width, CROP * height
    return [(x, y, x + width - dx, y + height - dy) for y in (0, dy / 2, dy) for x in (0, dx / 2, dx)]


def likeness(image: Image.Image) -> dict[str, int | bytes]:
    """`phash` of the picture, `crops`: pHashes of its 9 crops (9 x uint64, little-endian), `thumb`: 8 x 8 RGB bytes."""
    small = image.convert("L").resize((_BASE, _BASE), Image.Resampling.BOX)
    whole, *crops = (_phash(small, box) for box in [(0, 0, _BASE, _BASE), *crop_boxes(_BASE, _BASE)])
    thumb = image.resize((THUMB, THUMB), Image.Resampling.BOX)
    return {"phash": whole, "crops": np.array(crops, "<u8").tobytes(), "thumb": thumb.tobytes()}


def _phash(image: Image.Image, box: tuple[float, float, float, float]) -> int:
    """64-bit pHash of a box of the picture: signs of its low frequencies."""
    small = image.resize((_PHASH, _PHASH), Image.Resampling.LANCZOS, box=box)
    return int(str(imagehash.phash(small)), 16)


def movement(frames: np.ndarray) -> dict[str, float | int]:
    """Of windows of small frames (windows, frames, h, w), brightness 0 to 255:

    `motion`, mean change from frame to frame; `cuts`, changes that stand out of their window, which are no motion (one
    that lies in two windows counts twice); `frozen`, share of frames that repeat the one before.
    """
    changes = np.abs(np.diff(frames, axis=1)).mean((2, 3))
    others = (changes.sum(1, keepdims=True) - changes) / (changes.shape[1] - 1)
    cuts = (changes >= _CUT) & (changes >= _CUT_RATIO * others)
    return {
        "motion": float(changes[~cuts].mean()),
        "cuts": int(cuts.sum()),
        "frozen": float((changes < _FROZEN).mean()),
    }


def plain_text(text: str) -> str:
    """One line in normal form, with entities resolved and without control characters."""
    text = unicodedata.normalize("NFC", html.unescape(text))
    return " ".join(
        "".join(c if unicodedata.category(c)[0] != "C" or c in "\n\t" else "" for c in text).split()
    )


def text_hash(text: str) -> int:
    """64-bit simhash of a text's 4-character shingles, whatever its case, digits and punctuation."""
    letters = re.sub(r"[\W\d_]+", " ", plain_text(text).casefold()).strip()
    shingles = {letters[start : start + _SHINGLE] for start in range(max(1, len(letters) - _SHINGLE + 1))}
    hashes = np.array([xxhash.xxh3_64_intdigest(shingle.encode()) for shingle in sorted(shingles)], np.uint64)
    votes = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    bits = votes.sum(0) * 2 > len(hashes)
    return int(np.packbits(bits, bitorder="little").view("<u8")[0])
