"""`elastic keys`: the key is printed once and alone, names are unique, and mistakes are explained."""

from pathlib import Path

import pytest

from elastic.cli import EXIT_USER_ERROR, main
from elastic.serve.access.keys import KeyRing, load_keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(path: Path, name: str, *flags: str) -> int:
    return main(["keys", "add", name, "--file", str(path), *flags])


def test_standard_output_is_the_key_alone_and_the_file_knows_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(path, "mobile", "--rate", "20", "--concurrency", "8") == 0
    secret = capsys.readouterr().out.removesuffix("\n")
    entry = KeyRing(path).find(secret)
    assert entry is not None
    assert (entry.name, entry.rate, entry.burst, entry.concurrency) == ("mobile", 20.0, 20, 8)


def test_a_list_names_keys_and_limits_and_shows_no_secret(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(path, "mobile", "--rate", "20")
    secret = capsys.readouterr().out.strip()
    assert main(["keys", "list", "--file", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "mobile" in shown and "20" in shown
    assert secret not in shown and load_keys(path)[0].sha256 not in shown


def test_a_removed_key_is_gone_and_the_others_stay(path: Path) -> None:
    add(path, "first")
    add(path, "second")
    assert main(["keys", "remove", "first", "--file", str(path)]) == 0
    assert [entry.name for entry in load_keys(path)] == ["second"]


def test_a_name_is_given_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(path, "mobile")
    assert add(path, "mobile") == EXIT_USER_ERROR
    assert "has a key already" in capsys.readouterr().err
    assert len(load_keys(path)) == 1


def test_an_unknown_name_is_answered_with_those_there_are(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(path, "mobile")
    assert main(["keys", "remove", "mobil", "--file", str(path)]) == EXIT_USER_ERROR
    assert "it holds: mobile" in capsys.readouterr().err


def test_removing_from_a_file_that_is_not_there_makes_none(path: Path) -> None:
    assert main(["keys", "remove", "mobile", "--file", str(path)]) == EXIT_USER_ERROR
    assert not path.exists()


@pytest.mark.parametrize("flags", [("--rate", "0"), ("--rate", "nan"), ("--concurrency", "-1"), ("--burst", "3")])
def test_a_limit_that_limits_nothing_is_refused(
    path: Path, flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(path, "mobile", *flags) == EXIT_USER_ERROR
    assert not path.exists()
    assert capsys.readouterr().out == ""
