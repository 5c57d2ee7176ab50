"""Fixtures shared by several test folders."""

import importlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Ray and torch read these once, when they are first imported, and every process that a test starts inherits them.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny here, and threads wait for each other when a core is taken

HEAVY = ("matplotlib.pyplot", "ray.data", "ray.train.torch", "timm", "torch.utils.tensorboard")
"""What the tests need of other people's, all together."""


def pytest_configure(config: pytest.Config) -> None:
    """Load that before any module of ours, in a process that is to run all tests or its share of them.

    While jaxtyping instruments a module of ours, whatever is first imported on the way is looked for in a bytecode
    cache apart, and if that is empty compiled: thousands of files.
    """
    runs_all = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.getoption("numprocesses", None)
    if runs_all or hasattr(config, "workerinput"):
        for name in HEAVY:
            importlib.import_module(name)


@cache
def starts_processes(file: Path) -> bool:
    """Whether tests of a file start Ray, a server or workers.

    Two that start at once on a small machine are late, so these files run one after the other however many processes
    test, and first, because nothing else takes as long; the other files of `make test` run beside them.
    """
    return re.search(r"\bpytest\.mark\.(ray|serve)\b|\btwo_workers\b", file.read_text()) is not None


class FilesScheduling(LoadScopeScheduling):
    """Hands whole files to the processes that test; those that start processes are one unit.

    The group of a test is told by its file alone: marks are not known here, and what `--dist loadgroup` of xdist 3.8
    adds to the names of tests is not read by pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "starts processes" if starts_processes(self.config.rootpath / file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesScheduling:
    """Called where xdist is told to test in several processes."""
    return FilesScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what is skipped here and what comes first."""
    skip_without_gpu([item for item in items if item.get_closest_marker("gpu")])
    put_in_order(items)


def skip_without_gpu(items: list[pytest.Item]) -> None:
    """`pytest -m gpu` on a machine with one runs them."""
    if not items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))


def put_in_order(items: list[pytest.Item]) -> None:
    """By file; the server that tests share runs behind all others, and what ends it is the last to use it."""

    def uses(item: pytest.Item, name: str) -> bool:
        return name in getattr(item, "fixturenames", ())

    # Files stay together, because what is set up for a file is taken down as soon as a test of another follows.
    sharing = {item.path for item in items if uses(item, "running")}
    items.sort(
        key=lambda item: (
            not starts_processes(item.path),
            item.path in sharing,
            item.get_closest_marker("last") is not None,
        )
    )


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
