"""Models by name: a shipped part, a folder or a Hub id, and the hash that says which weights they were."""

import os
from pathlib import Path

import xxhash
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipelines.sources import InputError
from showo2.store import fetched
from showo2.tiny import resolve

HASH_DIGITS = 16  # of the weights' hash, in a model's name


def local_model(spec: str, option: str) -> str:
    """The folder of a model named as `tiny:NAME`, a path, a URL or a Hub id. InputError, which names
    the command line's `option`, if there is none.
    """
    try:
        path = resolve(fetched(spec))
    except (ValueError, OSError) as error:
        raise InputError(f"{option}: {error}") from error
    if os.path.isdir(path):
        return path
    try:
        return snapshot_download(path)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        cure = "give a shipped part such as tiny:captioner, a folder, or the id of a model on the Hub"
        raise InputError(f"{option} {spec}: no such folder and not to be had from the Hub; {cure}") from error


def weights_hash(folder: str) -> str:
    """Hash of the files of a model's folder, whatever the folder's name."""
    digest = xxhash.xxh3_128()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()
