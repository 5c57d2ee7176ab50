"""The cluster files are what Ray's launcher accepts, cost nothing while idle, and keep their ports closed."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "clusters").glob("*.yaml"))

pytestmark = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's own offline checks: the schema and the rules between node types. No cloud SDK is asked."""
    # Private, and the only way: `ray up` has no dry run.
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def commands(config: dict[str, Any]) -> str:
    return "\n".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])


def test_ray_accepts_the_file(path: Path):
    assert validate(load(path))["cluster_name"] == load(path)["cluster_name"]


@pytest.mark.parametrize("broken", [{"max_worker": 3}, {"head_node_type": "nobody"}, {"idle_timeout_minutes": "soon"}])
def test_ray_refuses_the_file_once_it_is_broken(path: Path, broken: dict[str, Any]):
    # Shows that the acceptance above means something.
    with pytest.raises(Exception, match=r"max_worker|head_node_type|soon"):
        validate(load(path) | broken)


def test_no_worker_runs_until_a_job_asks_for_it(path: Path):
    config = load(path)
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert workers
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert any("GPU" in kind["resources"] and kind["max_workers"] > 0 for kind in workers.values())


def test_the_head_has_no_gpu_to_pay_for(path: Path):
    config = load(path)
    assert "GPU" not in config["available_node_types"][config["head_node_type"]]["resources"]


def test_the_dashboard_listens_on_loopback_and_usage_reports_are_off(path: Path):
    starts = [line for line in commands(load(path)).splitlines() if "ray start" in line]
    assert all("RAY_USAGE_STATS_ENABLED=0" in line for line in starts)
    heads = [line for line in starts if "--head" in line]
    assert heads and all("--dashboard-host=127.0.0.1" in line for line in heads)


def test_images_hold_the_ray_that_the_package_is_tested_with(path: Path):
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    images = [value for key, value in load(path).get("docker", {}).items() if key.endswith("image")]
    assert images and all(image.startswith(f"rayproject/ray:{pinned[1]}-py3") for image in images)


def test_file_mounts_exist_when_used_from_the_repository_root(path: Path):
    config = load(path)
    assert all((ROOT / source).exists() for source in config["file_mounts"].values())
    assert ".venv" in config["rsync_exclude"] and "runs" in config["rsync_exclude"]
