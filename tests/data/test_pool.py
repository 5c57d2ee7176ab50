from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import ray

from elastic.data.decode import decode_all
from elastic.data.pool import PoolActor, decode_part, get
from elastic.data.sources import open_source
from elastic.errors import DataError

pytestmark = pytest.mark.ray


def repeat(block: pa.Table, times: int) -> pa.Table:
    return pa.concat_tables([block] * times)


def test_an_actor_of_the_pool_does_what_its_reference_builds(local_ray: None):
    build = ray.put(partial(partial, repeat, times=3))
    block = pa.table({"id": [1, 2]})
    assert PoolActor(build)(block)["id"].to_pylist() == [1, 2] * 3


def test_a_part_is_decoded_as_the_whole_is(damaged: str):
    source = open_source(damaged)
    canvases, broken = decode_all(source.read_images(np.arange(36)), 16)
    part_canvases, part_broken = decode_part(source, np.arange(4, 20), 16, 10**6)
    np.testing.assert_array_equal(part_canvases, canvases[4:20])
    np.testing.assert_array_equal(part_broken, broken[4:20])
    assert broken[4:20].any() and not broken[4:20].all()


def fail(error: Exception) -> None:
    raise error


def test_an_error_of_ours_is_raised_as_it_was_and_one_of_others_as_rays(local_ray: None):
    failing = ray.remote(num_cpus=0)(fail)
    with pytest.raises(DataError, match="are broken") as found:
        get(failing.remote(DataError("somewhere", "images are broken", "repair them")))
    assert type(found.value) is DataError
    with pytest.raises(ray.exceptions.RayTaskError, match="bad luck"):
        get(failing.remote(RuntimeError("bad luck")))
