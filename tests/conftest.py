"""Fixtures shared by several test folders."""

import os
from collections.abc import Iterator

import pytest

# Read once by Ray when it is first imported, so it is set before any test module imports it.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


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
