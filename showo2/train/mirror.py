"""A run on an object store: its small files are written in a folder of this machine, and copied up as they change.

Meters, TensorBoard, goodput and trackers append and rename, which no store can. Checkpoints and the export do not pass
through here: they go up by themselves.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from showo2.store import Place, StoreError

EVERY_S = 10.0


class Mirror:
    """Copies what changes in `folder` to `place`, as a context every `EVERY_S` seconds; one rank has one.

    first: files that are brought down before, as far as they are there; without the first of them this is a new run, and
    `folder` is emptied. skip: names in `folder` that stay on this machine. What cannot be copied now is copied later.
    """

    def __init__(self, folder: Path, place: Place, first: Sequence[str], skip: Sequence[str]):
        self.folder, self.place, self.skip = folder, place, tuple(skip)
        self._seen: dict[Path, tuple[int, int]] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        found = {name: (place / name).read() for name in first}
        if found[first[0]] is None:
            self._empty()
        for name, data in found.items():
            if data is not None:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        self.push()  # Trouble with the address or the credentials shows now.
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Copy the rest, and stop."""
        self._ended.set()
        self._thread.join()
        self._try()

    def push(self) -> None:
        """Copy what has changed since the last time. Raises StoreError."""
        with self._lock:
            for path in self._files():
                status = path.stat()
                state = (status.st_mtime_ns, status.st_size)
                if self._seen.get(path) != state:
                    (self.place / path.relative_to(self.folder).as_posix()).write(path.read_bytes())
                    self._seen[path] = state

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._try()

    def _try(self) -> None:
        try:
            self.push()
        except OSError as error:  # The store's, or a file that was just renamed.
            if isinstance(error, StoreError):
                warnings.warn(f"{self.place} is behind {self.folder}: {error}", stacklevel=2)

    def _files(self) -> list[Path]:
        paths = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in paths if path.suffix not in (".tmp", ".lock")
                and path.relative_to(self.folder).parts[0] not in self.skip]

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in self.skip:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
