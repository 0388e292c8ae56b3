"""Names of the shipped parts: `tiny:vae` and its like become local folders."""

from pathlib import Path

PARTS = ("vae", "siglip", "llm", "llm-large", "captioner", "reference")
_PREFIX = "tiny:"
_WEIGHTS = Path(__file__).parent / "weights"


def resolve(spec: str) -> str:
    """Turn `tiny:NAME` into the folder of that shipped part; any other path or Hub id comes back unchanged.

    Raises ValueError for a name that is no part, FileNotFoundError for a part that this installation lacks.
    """
    spec = str(spec)
    if not spec.startswith(_PREFIX):
        return spec
    name = spec.removeprefix(_PREFIX)
    if name not in PARTS:
        known = ", ".join(_PREFIX + part for part in PARTS)
        raise ValueError(f"{spec!r} is not a shipped part; known: {known}, or give a path or a Hub id")
    folder = _WEIGHTS / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{spec!r} should lie in {folder}, which is missing; make it with `python -m showo2.tiny.parts --only {name}`"
            if name != "reference"
            else f"{spec!r} should lie in {folder}, which is missing; name a checkpoint of your own instead"
        )
    return str(folder)
