"""What curation hands to later stages: the units of a selection, their rows, and the pictures' bytes."""

import io
import os
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from pipelines.facts import Limits
from pipelines.probe import FORMATS_BY_PILLOW, ProbeError
from pipelines.publish import (
    Unit,
    collect_leftovers,
    compile_manifest,
    done,
    filesystem,
    is_local,
    join,
    read_bytes,
    read_json,
)
from pipelines.sources import InputError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", *FORMATS_BY_PILLOW)


@dataclass(frozen=True)
class SelectedUnit:
    """The kept rows of one unit: `facts` and `selection` are files under the dataset's folder."""

    unit: Unit
    facts: str
    selection: str
    rows: int
    hash: str  # of the selection file: changes with what is kept


@dataclass(frozen=True)
class Selection:
    """A named list of rows: data, not a copy of bytes. `units` stand in order of source and path."""

    name: str
    hash: str
    units: tuple[SelectedUnit, ...]


def load_selection(root: str, name: str = "base") -> Selection:
    """The selection `name` of the dataset at `root`. InputError if it was not made yet."""
    try:
        manifest = read_json(root, f"selections/{name}/manifest.json")
    except FileNotFoundError as error:
        cure = f"run jobs.curate --source NAME=PATH --out {root} first"
        raise InputError(f"no selection {name!r} in {root}: {cure}") from error
    units = tuple(SelectedUnit(**{**entry, "unit": Unit(**entry["unit"])}) for entry in manifest["units"])
    return Selection(name, manifest["hash"], units)


def read_table(root: str, relpath: str, columns: list[str] | None = None) -> pa.Table:
    """A published Parquet file, or some of its columns. InputError where an earlier version wrote it without one."""
    file = pq.ParquetFile(pa.BufferReader(read_bytes(root, relpath)))
    if missing := [name for name in columns or () if name not in file.schema_arrow.names]:
        cure = "an earlier version wrote it; run jobs.curate on its sources again"
        raise InputError(f"{join(root, relpath)} has no {', '.join(missing)}: {cure}")
    return file.read(columns)


def read_rows(root: str, selected: SelectedUnit) -> pa.Table:
    """The facts (facts.SCHEMA) of a unit's kept rows, in the order of the selection.

    A column more, `chosen`, says of a document's pictures why each is left out, as the selection has it.
    """
    facts = read_table(root, selected.facts)
    selection = read_table(root, selected.selection, ["row", "pictures"])
    return facts.take(selection["row"]).append_column("chosen", selection["pictures"])


def read_captions(root: str, selected: SelectedUnit) -> pa.Table | None:
    """(uid, text, captioner, prompt_id, finish_reason) in the order of `read_rows`; None before jobs.recaption.

    Captions of another selection of this unit are none.
    """
    record = done(root, "captions", only=[selected.unit.id]).get(selected.unit.id)
    if record is None or record["selection"] != selected.hash:
        return None
    return read_table(root, record["files"][0]["path"])


def dataset_manifest(root: str) -> dict[str, Any]:
    """Write `root/manifest.json` over all families, of the units that the base selection names.

    What workers left behind that were killed while the run went on is removed: it ends with what it names.
    """
    collect_leftovers(root)
    units = [selected.unit.id for selected in load_selection(root).units]
    several = [family for kind in ("selections", "scores", "latents") for family in families(root, kind)]
    return compile_manifest(root, ["facts", "captions", *several], units)


def families(root: str, kind: str) -> list[str]:
    """The column families of a kind that `root` has: of latents, latents/1x8x8 and so on."""
    fs, base = filesystem(root)
    folder = f"{base}/units/{kind}"
    if not fs.isdir(folder):
        return []
    fs.invalidate_cache(folder)
    return sorted(f"{kind}/{os.path.basename(name.rstrip('/'))}" for name in fs.ls(folder, detail=False))


class MediaReader:
    """Byte ranges of one tar, local or remote, without a copy of the rest. Use with contextlib.closing."""

    def __init__(self, path: str) -> None:
        fs, inner = filesystem(path)
        self._path = path
        # Rows are read front to back, so on a remote file the bytes of the next ones come along.
        self._file: BinaryIO = fs.open(inner, "rb", block_size=8 << 20)
        self._descriptor = self._file.fileno() if is_local(fs) else None

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size). Raises EOFError if the file is shorter: it has changed since."""
        if self._descriptor is not None:
            data = os.pread(self._descriptor, size, offset)
        else:
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) != size:
            raise EOFError(f"{self._path} ends before byte {offset + size}: it changed after curation")
        return data

    def close(self) -> None:
        """Give the file handle back."""
        self._file.close()


def open_picture(data: bytes, side: int | None = None, max_pixels: int = Limits.max_pixels) -> Image.Image:
    """Decode to RGB, upright, on white where it is transparent.

    `side`: the shorter side that is needed, in pixels; JPEGs are then decoded at the nearest larger eighth, which
    is several times faster. Raises ProbeError("undecodable") or ProbeError("too_many_pixels").
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > max_pixels:
                raise ProbeError("too_many_pixels", f"{image.width}x{image.height}")
            if side is not None:
                scale = min(image.size) / side
                image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
            image.load()
            return _rgb(_upright(image))
    except ProbeError:
        raise
    # Pillow's decoders answer a broken file with nearly any exception.
    except Exception as error:
        raise ProbeError("undecodable", f"{type(error).__name__}: {error}"[:200]) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - broken EXIF fails in many ways, and is no reason to lose a picture
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits: convert("L") alone would clip.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
