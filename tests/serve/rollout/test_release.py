import shutil
from pathlib import Path

import pytest

from elastic.checkpoint import MANIFEST, TOKENIZER, WEIGHTS
from elastic.errors import CheckpointError
from elastic.model.pretrained import BUNDLED_RUN
from elastic.profile.store import LATENCY, QUALITY, latency_path
from elastic.serve.rollout.release import Releases


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    folder = tmp_path / "releases"
    folder.mkdir()
    return Releases(folder)


def test_a_copy_has_the_name_and_the_files_of_its_run(releases: Releases, tiny_run: Path) -> None:
    release = releases.copy(tiny_run)
    assert release.run.name == tiny_run.name
    for name in (WEIGHTS, MANIFEST, TOKENIZER, QUALITY, LATENCY):
        assert (release.run / name).read_bytes() == (tiny_run / name).read_bytes()


def test_a_copy_stays_as_it_is_when_its_run_is_overwritten(releases: Releases, tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    release = releases.copy(run)
    (run / WEIGHTS).write_bytes(b"")
    assert (release.run / WEIGHTS).read_bytes() == (tiny_run / WEIGHTS).read_bytes()


def test_the_times_of_the_model_in_the_package_come_from_where_they_were_measured(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = latency_path(BUNDLED_RUN)
    measured.parent.mkdir(parents=True)
    measured.write_bytes(b"measured here")
    assert (releases.copy(BUNDLED_RUN).run / LATENCY).read_bytes() == b"measured here"


def test_each_copy_has_a_number_of_its_own(releases: Releases, tiny_run: Path) -> None:
    assert [releases.copy(tiny_run).number for _ in range(3)] == [1, 2, 3]


def test_what_was_published_last_is_read_back_by_others(releases: Releases, tiny_run: Path) -> None:
    first, second = releases.copy(tiny_run), releases.copy(tiny_run)
    for release in (first, second, first):
        releases.publish(release)
        assert Releases(releases.folder).published() == release


def test_a_removed_copy_leaves_nothing(releases: Releases, tiny_run: Path) -> None:
    releases.remove(releases.copy(tiny_run))
    assert not list(releases.folder.iterdir())


def test_a_folder_without_a_model_is_refused(releases: Releases, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished model"):
        releases.copy(tmp_path)


def test_a_copy_that_fails_says_how_to_get_room_and_leaves_nothing(
    releases: Releases, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CheckpointError, match=r"No space left.*TMPDIR"):
        releases.copy(tiny_run)
    assert not list(releases.folder.iterdir())
