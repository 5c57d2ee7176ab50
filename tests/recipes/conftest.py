"""The data set `scenes`, forty times smaller than the one that recipes train on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic.data.build_scenes import write_scenes
from elastic.data.scenes import SceneConfig, cached_path

NUM_CAPTIONS = 32
"""As many as a batch of `synclr` has."""


@pytest.fixture(scope="session")
def cache_of_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which `scenes` is built already; every class of object is salient twice."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        write_scenes(cached_path(), SceneConfig(num_train=96, num_val=8, num_test=8, num_captions=NUM_CAPTIONS))
    return cache


@pytest.fixture(scope="module")
def small_scenes(cache_of_scenes: Path) -> Iterator[None]:
    """What `open_source("scenes")` opens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_of_scenes))
        yield
