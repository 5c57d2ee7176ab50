"""Fixtures shared by several test folders."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

# Read once by Ray when it is first imported, so it is set before any test module imports it.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

HEAVY = ("matplotlib.pyplot", "ray.data", "ray.train.torch", "timm", "torch.utils.tensorboard")
"""What the tests need of other people's, all together."""


def pytest_configure(config: pytest.Config) -> None:
    """Load that before any module of ours, if all tests are to run.

    While jaxtyping instruments a module of ours, whatever is first imported on the way is looked for in a bytecode
    cache apart, and if that is empty compiled: thousands of files.
    """
    if config.args_source == pytest.Config.ArgsSource.TESTPATHS:
        for name in HEAVY:
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none: `pytest -m gpu` on a machine with one runs it."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two processes for all tests that compare two workers with one."""
    from .workers import TwoWorkers  # loads torch

    workers = TwoWorkers(tmp_path_factory.mktemp("workers"))
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One small Ray instance on loopback for all tests that need one."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,  # logical: several light actors share the cores of a small machine
        object_store_memory=512 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()
