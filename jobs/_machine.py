"""Where a number was measured: the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "diffusers", "ray", "pyarrow", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that move the numbers, as far as they are installed."""
    installed = {str(d.name).lower(): d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{name: installed[name] for name in _PACKAGES if name in installed}}


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory in GiB, the GPU if there is one, and torch's threads."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The commit that runs, with `+` where the tree differs from it; `unknown` outside a repository."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
