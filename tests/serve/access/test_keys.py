"""Key files that are private, whole and never hold a key; a ring that follows them."""

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from elastic.errors import ConfigError
from elastic.serve.access.keys import KeyRing, create_key, editing, fingerprint, load_keys


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(path: Path, name: str, **limits: float) -> str:
    entry, secret = create_key(name, **limits)  # type: ignore[arg-type]
    with editing(path) as entries:
        entries.append(entry)
    return secret


def test_a_written_entry_is_read_as_it_was(path: Path) -> None:
    add(path, "mobile", rate=2.5, concurrency=3)
    add(path, "batch")
    mobile, batch = load_keys(path)
    assert (mobile.name, mobile.rate, mobile.burst, mobile.concurrency) == ("mobile", 2.5, 2, 3)
    assert (batch.name, batch.rate, batch.burst, batch.concurrency) == ("batch", None, None, None)


def test_the_file_is_private_and_does_not_hold_the_key(path: Path) -> None:
    secret = add(path, "mobile")
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text()
    assert secret.removeprefix("elastic_") not in path.read_text()


def test_keys_are_random_and_of_256_bits() -> None:
    secrets = {create_key("a")[1] for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret.removeprefix("elastic_")) for secret in secrets} == {43}  # 256 bits in base64


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused_with_the_command_that_mends_it(path: Path, mode: int) -> None:
    add(path, "mobile")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        load_keys(path)


def test_a_missing_file_is_refused_with_the_command_that_makes_one(path: Path) -> None:
    with pytest.raises(ConfigError, match="elastic keys add NAME"):
        load_keys(path)


SOUND = {"name": "a", "sha256": fingerprint("x"), "created": "2026-11-26"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not a key file"),
        ("[]", "is not a key file"),
        ('{"keys": 3}', "is not a key file"),
        (json.dumps({"keys": [SOUND | {"colour": "red"}]}), "is not a key file"),
        (json.dumps({"keys": [SOUND | {"rate": "fast", "burst": 1}]}), "is not a key file"),
        (json.dumps({"keys": [SOUND | {"sha256": "the key itself"}]}), "not a SHA-256"),
        (json.dumps({"keys": [SOUND | {"name": ""}]}), "printable"),
        (json.dumps({"keys": [SOUND | {"rate": -1.0, "burst": 1}]}), "must be positive"),
        (json.dumps({"keys": [SOUND | {"rate": 1.0}]}), "goes with a rate"),
        (json.dumps({"keys": [SOUND, SOUND | {"sha256": fingerprint("y")}]}), "same name"),
        (json.dumps({"keys": [SOUND, SOUND | {"name": "b"}]}), "same sha256"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_whole(path: Path, content: str, words: str) -> None:
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=words) as raised:
        load_keys(path)
    assert "the key itself" not in str(raised.value)


def test_an_edit_that_fails_changes_nothing_and_leaves_nothing_behind(path: Path) -> None:
    add(path, "mobile")
    before = path.read_bytes()
    with pytest.raises(KeyError), editing(path) as entries:
        entries.clear()
        raise KeyError
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["keys.json"]


def test_editors_wait_for_each_other(path: Path) -> None:
    threads = [threading.Thread(target=add, args=(path, f"user{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in load_keys(path)} == {f"user{number}" for number in range(8)}


def test_a_link_to_a_file_stays_a_link(path: Path) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path)
    add(link, "mobile")
    assert link.is_symlink() and load_keys(path)[0].name == "mobile"


def test_a_key_is_found_and_nothing_else(path: Path, clock: Clock) -> None:
    first, second = add(path, "first"), add(path, "second")
    ring = KeyRing(path, clock)
    assert [entry and entry.name for entry in (ring.find(first), ring.find(second))] == ["first", "second"]
    assert ring.find(first[:-1]) is None
    assert ring.find(fingerprint(first)) is None
    assert ring.find("") is None


def test_a_new_key_counts_and_a_removed_one_does_not_after_a_second_without_restart(path: Path, clock: Clock) -> None:
    old = add(path, "old")
    ring = KeyRing(path, clock)
    with editing(path) as entries:
        entries.clear()
    new = add(path, "new")
    clock.now_s += 0.9
    assert ring.find(new) is None and ring.find(old) is not None  # not looked at yet
    clock.now_s += 0.2
    assert ring.find(new) is not None and ring.find(old) is None


@pytest.mark.parametrize("fate", ["broken", "readable", "gone"])
def test_a_file_that_turns_bad_keeps_the_old_keys_and_is_complained_about_once(
    path: Path, clock: Clock, fate: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = add(path, "mobile")
    ring = KeyRing(path, clock)
    if fate == "broken":
        path.write_text("{")
    elif fate == "readable":
        path.chmod(0o644)
    else:
        path.unlink()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.now_s += 2.0
            assert ring.find(secret) is not None
    assert caplog.text.count("THE KEY FILE IS BROKEN") == 1
    assert secret not in caplog.text


def test_a_file_that_was_mended_is_read_again(path: Path, clock: Clock) -> None:
    secret = add(path, "mobile")
    ring = KeyRing(path, clock)
    sound = path.read_bytes()
    path.write_text("{")
    clock.now_s += 2.0
    assert ring.find(secret) is not None
    path.write_bytes(sound)
    os.chmod(path, 0o600)
    with editing(path) as entries:
        entries.clear()
    clock.now_s += 2.0
    assert ring.find(secret) is None
