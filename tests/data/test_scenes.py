from pathlib import Path
from typing import Any

import pytest

from elastic.data import scenes
from elastic.data.scenes import SceneConfig
from elastic.errors import ConfigError


def test_the_default_set_has_the_documented_size():
    config = SceneConfig()
    assert (config.num_train, config.num_val, config.num_test) == (4000, 400, 800)
    assert (config.num_captions, config.images_per_caption) == (1000, 4)
    assert config.num_rows == 9200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train", 0),
        ("num_val", -1),
        ("images_per_caption", 0),
        ("min_drawings", 6),
        ("salient_named", 1.5),
        ("min_visible", -0.1),
        ("num_objects", (0, 2)),
        ("num_objects", (3, 2)),
        ("num_objects", (2, 10)),
        ("salient_px", (30, 43)),
        ("other_px", (20, 10)),
    ],
)
def test_settings_that_no_set_can_have_are_refused(name: str, value: Any):
    with pytest.raises(ConfigError, match=name):
        SceneConfig(**{name: value})


def test_a_scene_cannot_show_more_objects_than_there_are_classes():
    SceneConfig(num_objects=(2, 6), classes_per_category=1)
    with pytest.raises(ConfigError, match="within 1 to 6"):
        SceneConfig(num_objects=(2, 7), classes_per_category=1)


def test_the_set_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    name = f"scenes-{scenes.VERSION}.parquet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert scenes.cached_path() == tmp_path / "elastic" / name
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert scenes.cached_path() == Path("/home/someone/.cache/elastic") / name


def test_background_is_the_first_segment_class():
    assert scenes.SEGMENT_NAMES[0] == "background"
    assert list(scenes.SEGMENT_NAMES[1:]) == sorted(scenes.CATEGORIES)
