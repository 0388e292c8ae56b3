"""Shared by all tests: one thread, no network, and one private Ray cluster for those that need it."""

import os
from collections.abc import Iterator

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    AWS_EC2_METADATA_DISABLED="true",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="30",
)
os.environ.pop("RAY_ADDRESS", None)

import pytest
import torch

import jobs  # noqa: F401  (sets Ray's environment before any test imports Ray)

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without Ray first: they are quick, and fail early.

    Of two processes (`make test`), one runs all that need Ray, on one cluster, and a file's other tests stay together.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if _needs_ray(item) else str(item.path)))
    items.sort(key=_needs_ray)


def _needs_ray(item: pytest.Item) -> bool:
    return bool({"ray_session", "cluster"} & set(getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One private cluster of two logical CPUs, started by the first test that asks for it."""
    import ray

    from jobs._ray import connect

    connect(num_cpus=2)
    yield
    ray.shutdown()
