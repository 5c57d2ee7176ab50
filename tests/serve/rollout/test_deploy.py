import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from elastic.checkpoint import MANIFEST, WEIGHTS
from elastic.errors import CheckpointError, ConfigError, ElasticError, ProfileError, ServerUnavailable
from elastic.profile.provenance import Device
from elastic.profile.store import LATENCY, QUALITY
from elastic.profile.tables import LatencyTable
from elastic.serve.config import ServeConfig
from elastic.serve.rollout.deploy import Candidate, Deployer, check_not_narrower, try_out_encoder
from elastic.serve.rollout.follow import Following
from elastic.serve.rollout.release import Release, Releases


class Fleet:
    """Replicas that follow what is published; some refuse, are late, or never do."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.releases = Releases(folder)
        self.now_s = 0.0
        self.late = 0
        self.refuses: Release | None = None
        self.serving: list[int] = []

    def follow_all(self, timeout_s: float) -> Sequence[Following]:
        published = self.releases.published()
        if self.late:
            self.late -= 1
            return []
        problem = "no room" if self.refuses is not None and published.number == self.refuses.number else ""
        self.serving = [published.number, 1 if problem else published.number]
        return [Following(self.serving[0], "v"), Following(self.serving[1], "v", problem)]

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def deployer(self, run: Path) -> Deployer:
        return Deployer(
            ServeConfig(run=run),
            self.releases,
            self.follow_all,
            timeout_s=5.0,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "releases")


@pytest.fixture
def deployer(fleet: Fleet, tiny_run: Path) -> Deployer:
    return fleet.deployer(tiny_run)


def copies(fleet: Fleet) -> list[str]:
    return sorted(path.name for path in fleet.releases.folder.iterdir() if path.is_dir())


def test_the_first_run_is_published_before_any_replica_starts(fleet: Fleet, deployer: Deployer) -> None:
    assert fleet.releases.published().number == 1


def test_a_deploy_says_what_it_replaced_and_how_long_it_took(fleet: Fleet, deployer: Deployer, other_run: Path) -> None:
    fleet.late = 3
    deployed = deployer.deploy(other_run)
    assert (deployed.old_name, deployed.name, deployed.num_replicas) == ("tiny", "other", 2)
    assert deployed.old_version != deployed.version
    assert deployed.took_s == pytest.approx(0.3)
    assert "build every index anew" in deployed.advice
    assert fleet.serving == [2, 2]


def test_rolling_back_returns_and_rolling_back_again_goes_forth(
    fleet: Fleet, deployer: Deployer, other_run: Path
) -> None:
    deployer.deploy(other_run)
    back = deployer.rollback()
    assert (back.old_name, back.name, fleet.serving) == ("other", "tiny", [1, 1])
    assert deployer.rollback().name == "other"


def test_only_the_served_model_and_the_one_before_are_kept(fleet: Fleet, deployer: Deployer, other_run: Path) -> None:
    for _ in range(3):
        deployer.deploy(other_run)
    assert copies(fleet) == ["3", "4"]
    deployer.rollback()
    assert copies(fleet) == ["3", "4"]


def test_there_is_nothing_before_the_first(deployer: Deployer) -> None:
    with pytest.raises(ConfigError, match="is the first model"):
        deployer.rollback()


def truncated(run: Path) -> None:
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-100])


def without_weights(run: Path) -> None:
    (run / WEIGHTS).unlink()


def another_manifest(run: Path) -> None:
    text = (run / MANIFEST).read_text()
    (run / MANIFEST).write_text(text.replace('"width": 32', '"width": 64'))


def nonsense(run: Path) -> None:
    weights = safetensors.torch.load_file(run / WEIGHTS)
    broken = {name: torch.full_like(value, float("nan")) for name, value in weights.items()}
    safetensors.torch.save_file(broken, run / WEIGHTS)


def without_times(run: Path) -> None:
    (run / LATENCY).unlink()


def without_quality(run: Path) -> None:
    (run / QUALITY).unlink()


def of_another_machine(run: Path) -> None:
    table = LatencyTable.load(run / LATENCY)
    elsewhere = replace(table.provenance, device=Device("another machine", 96, "AVX512"))
    LatencyTable(table.rows, elsewhere).save(run / LATENCY)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (truncated, CheckpointError, "cannot be read"),
        (without_weights, CheckpointError, "no finished model"),
        (another_manifest, CheckpointError, "do not fit the model"),
        (nonsense, CheckpointError, "not finite"),
        (without_times, ProfileError, "latency"),
        (without_quality, ProfileError, "quality"),
        (of_another_machine, ProfileError, "another machine"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_replica_sees_it(
    fleet: Fleet,
    deployer: Deployer,
    other_run: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[ElasticError],
    words: str,
) -> None:
    run = shutil.copytree(other_run, tmp_path / "broken")
    damage(run)
    with pytest.raises(error, match=words) as raised:
        deployer.deploy(run)
    assert str(fleet.releases.folder) not in str(raised.value)
    assert fleet.releases.published().number == 1 and copies(fleet) == ["1"]
    assert deployer.deploy(other_run).old_name == "tiny"


def test_all_return_when_one_replica_refuses(fleet: Fleet, deployer: Deployer, other_run: Path) -> None:
    fleet.refuses = Release(2, other_run)
    with pytest.raises(CheckpointError, match=r"a replica refused it \(no room\)"):
        deployer.deploy(other_run)
    assert fleet.serving == [1, 1] and copies(fleet) == ["1"]


def test_all_return_when_one_replica_does_not_answer_in_time(fleet: Fleet, deployer: Deployer, other_run: Path) -> None:
    fleet.late = 60
    with pytest.raises(ServerUnavailable, match="after 5 s"):
        deployer.deploy(other_run)
    assert fleet.releases.published().number == 1 and copies(fleet) == ["1"]


def test_a_second_deploy_does_not_disturb_one_that_runs(fleet: Fleet, deployer: Deployer, other_run: Path) -> None:
    problems: list[str] = []

    def meddle(seconds: float) -> None:
        with pytest.raises(ConfigError) as raised:
            deployer.deploy(other_run)
        problems.append(str(raised.value))

    fleet.late, deployer._sleep = 1, meddle
    deployer.deploy(other_run)
    assert len(problems) == 1 and "under way" in problems[0]


def test_messages_of_the_control_socket_are_understood(fleet: Fleet, deployer: Deployer, other_run: Path) -> None:
    done = deployer.handle({"verb": "deploy", "run": str(other_run), "allow_narrower": False})
    assert (done["old_name"], done["name"]) == ("tiny", "other")
    assert deployer.handle({"verb": "rollback"})["name"] == "tiny"


WIDE = Candidate(Release(1, Path("a/wide")), "v", ("images", "texts", "width 8", "width 16"))


@pytest.mark.parametrize(
    ("offers", "lost"),
    [
        (("images", "width 8", "width 16"), "texts"),
        (("images", "texts", "width 8"), "width 16"),
        (("texts", "width 8"), "images, width 16"),
    ],
)
def test_what_offers_less_is_refused_with_what_would_be_lost(offers: tuple[str, ...], lost: str) -> None:
    narrow = Candidate(Release(2, Path("a/narrow")), "w", offers)
    with pytest.raises(CheckpointError, match=f"does not offer {lost}.*--allow-narrower"):
        check_not_narrower(WIDE, narrow)
    check_not_narrower(narrow, WIDE)


def test_a_candidate_offers_every_modality_and_width(tiny_run: Path, tmp_path: Path) -> None:
    candidate = try_out_encoder(Releases(tmp_path).copy(tiny_run), ServeConfig(run=tiny_run))
    assert candidate.offers == ("images", "texts", "width 8", "width 16", "width 32")
