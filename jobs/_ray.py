"""The one place where a job meets Ray: attach to the cluster it was submitted to, or start a private one."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import ray
from ray.exceptions import RayError

_PROJECT = Path(__file__).resolve().parents[1]
_PREFIX = "showo2-ray-"
_OBJECT_STORE_BYTES = 512 * 1024**2
# A Unix socket's path ends at 107 bytes, and Ray adds about 70 to the folder's name.
_LONGEST_FOLDER = 32


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster named by RAY_ADDRESS (set inside `ray job submit`), else start a private one on loopback.

    num_cpus: logical CPUs of a private cluster, by default this process's cores, but at least 2 so that two training
    workers always find room. Does nothing when this process is connected already. Raises ConnectionError where
    RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    if is_private():
        _start_private(num_cpus or max(2, _cores()))
    else:
        _attach(os.environ["RAY_ADDRESS"])
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def is_private() -> bool:
    """Whether `connect` starts (or started) a cluster of this process's own."""
    return os.environ.get("RAY_ADDRESS") in (None, "", "local")


def _attach(address: str) -> None:
    """A submitted job brings its own working_dir; a driver started by hand on a cluster's node has to send one."""
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    runtime_env = {} if submitted else {"working_dir": str(_PROJECT), "excludes": [".venv", ".git", "runs"]}
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "://" not in address:
            # Ray itself takes half a minute to say that nobody listens.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, runtime_env=runtime_env, logging_level=logging.WARNING)
    except (OSError, RayError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; unset RAY_ADDRESS to run on this machine alone"
        ) from error


def _start_private(num_cpus: int) -> None:
    """One cluster for this process only: no dashboard, its files in a folder of its own that goes with the process."""
    _remove_orphans()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_folder()))
    atexit.register(_stop, folder)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(folder),
        runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
        logging_level=logging.WARNING,
    )


def _cores() -> int:
    """Cores that this process may use; macOS only knows how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _python_path() -> str:
    """Workers import the project from where this process did, installed or not."""
    return os.pathsep.join([str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONGEST_FOLDER else "/tmp"


def _stop(folder: Path) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans() -> None:
    """A driver that was killed leaves its folder behind; its Ray processes died with it."""
    for folder in Path(_short_folder()).glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
