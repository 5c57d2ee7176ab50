import gc
import shutil
import threading
import weakref
from pathlib import Path

import pytest

from elastic.errors import ProfileError
from elastic.profile.store import LATENCY
from elastic.serve.config import ServeConfig
from elastic.serve.observer import Observer
from elastic.serve.resident import ResidentModel
from elastic.serve.served import Served


@pytest.fixture
def served(tiny_model: ResidentModel, tiny_run: Path) -> Served:
    return Served.of(tiny_model, ServeConfig(run=tiny_run), Observer())


def is_closed(served: Served) -> bool:
    """Whether its model thread takes no more work."""
    try:
        served.engine._thread.submit(int)
    except RuntimeError:
        return True
    return False


def test_it_is_named_after_its_run_and_knows_its_weights(served: Served, tiny_run: Path) -> None:
    assert (served.name, len(served.version)) == (tiny_run.name, 12)
    assert set(served.engine.fronts) == {"image", "text"}


def test_what_is_retired_stays_open_for_the_calls_that_use_it(served: Served) -> None:
    with served.in_use():
        with served.in_use():
            served.retire()
        assert not is_closed(served)
    assert is_closed(served)


def test_what_is_retired_while_idle_closes_at_once(served: Served) -> None:
    served.retire()
    assert is_closed(served)


def test_what_is_not_retired_stays_open_between_calls(served: Served) -> None:
    with served.in_use():
        pass
    assert not is_closed(served)
    served.close()


def test_a_call_that_fails_does_not_keep_it_open(served: Served) -> None:
    with pytest.raises(KeyError), served.in_use():
        served.retire()
        raise KeyError
    assert is_closed(served)


def test_every_submodel_on_a_front_has_run_at_the_smallest_and_the_largest_batch(
    tiny_model: ResidentModel, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = set()
    compute = ResidentModel.compute

    def noted(self: ResidentModel, modality, submodel, inputs):  # type: ignore[no-untyped-def]
        computed.add((modality, submodel, len(inputs)))
        return compute(self, modality, submodel, inputs)

    monkeypatch.setattr(ResidentModel, "compute", noted)
    served = Served.of(tiny_model, ServeConfig(run=tiny_run), Observer())
    fronts = served.engine.fronts
    wanted = {(m, level.submodel, size) for m in fronts for level in fronts[m].levels for size in (1, 8)}
    assert wanted <= computed
    served.close()


def test_a_run_without_times_is_not_served(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / LATENCY).unlink()
    with pytest.raises(ProfileError):
        Served.load(ServeConfig(run=run), Observer())


def test_old_weights_leave_memory_without_the_garbage_collector(tiny_run: Path) -> None:
    # A replica freezes what exists when it starts, so its first model is never looked at by the collector.
    served = Served.load(ServeConfig(run=tiny_run), Observer())
    weights = weakref.ref(served.model.encoder.image.head.weight)
    served.engine._thread.submit(int).result()
    thread = next(iter(served.engine._thread._threads))
    gc.disable()
    try:
        served.retire()
        del served
        thread.join()
        assert weights() is None
    finally:
        gc.enable()
    assert thread not in threading.enumerate()
