import json
from pathlib import Path

import pytest

from elastic.data.icon_sets import IconSet, slug


def icon_set(folder: Path, icons: dict, **more: object) -> IconSet:
    (folder / "icons.json").write_text(json.dumps({"icons": icons, **more}))
    return IconSet(folder)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("flag: Cura\u00e7ao", "flag-curacao"),
        ("man\u2019s shoe", "mans-shoe"),
        ("Antigua & Barbuda", "antigua-and-barbuda"),
        ("  O button (blood type) ", "o-button-blood-type"),
    ],
)
def test_names_become_slugs(text: str, expected: str):
    assert slug(text) == expected


def test_aliases_lead_to_their_icon(tmp_path: Path):
    aliases = {"b": {"parent": "a"}, "c": {"parent": "b"}, "turned": {"parent": "a", "rotate": 1}}
    found = icon_set(tmp_path, {"a": {"body": "<path/>"}}, aliases=aliases)
    assert found.resolve("c") == {"body": "<path/>"}
    assert found.resolve("turned") is None
    assert found.resolve("nothing") is None
    assert found.names_and_aliases == ["a", "b", "c", "turned"]


def test_aliases_in_a_circle_lead_nowhere(tmp_path: Path):
    assert icon_set(tmp_path, {}, aliases={"a": {"parent": "b"}, "b": {"parent": "a"}}).resolve("a") is None


def test_an_icon_takes_its_frame_from_itself_then_its_set_then_the_default(tmp_path: Path):
    found = icon_set(
        tmp_path, {"a": {"body": '<path fill="currentColor"/>', "width": 20, "left": -2}}, width=8, height=9
    )
    svg = found.svg("a", 64)
    assert svg is not None
    assert 'viewBox="-2 0 20 9"' in svg
    assert 'width="64" height="64"' in svg
    assert "currentColor" not in svg
    assert found.svg("b", 64) is None
