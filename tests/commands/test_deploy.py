from pathlib import Path
from typing import Any

import pytest

from elastic.commands.deploy import Deploy, port_of, report
from elastic.errors import ConfigError
from elastic.serve.rollout.control import listening, socket_path

DONE = {
    "old_name": "icons",
    "old_version": "aaaa",
    "name": "icons_v2",
    "version": "bbbb",
    "num_replicas": 3,
    "took_s": 1.26,
    "advice": "build every index anew",
}


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a server at port 9007 was asked."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    got: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        got.append(request)
        return DONE

    with listening(socket_path(9007), answer):
        yield got


def test_a_run_is_sent_by_its_whole_path(
    requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Deploy(run_dir=Path("icons_v2"), server="127.0.0.1:9007").run()
    assert requests == [{"verb": "deploy", "run": str(tmp_path / "icons_v2"), "allow_narrower": False}]
    assert "icons aaaa -> icons_v2 bbbb on 3 replica(s) after 1.3 s" in capsys.readouterr().out


def test_a_rollback_names_no_run(requests: list[dict[str, Any]]) -> None:
    Deploy(rollback=True, server="127.0.0.1:9007").run()
    assert requests == [{"verb": "rollback"}]


@pytest.mark.parametrize("command", [Deploy(), Deploy(run_dir=Path("a"), rollback=True)])
def test_a_run_or_a_rollback_is_needed_and_not_both(command: Deploy) -> None:
    with pytest.raises(ConfigError, match="or --rollback without one"):
        command.run()


@pytest.mark.parametrize("server", ["127.0.0.1", "", "host:name"])
def test_a_server_without_a_port_is_an_error(server: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        port_of(server)


def test_the_report_ends_with_what_to_do_if_there_is_something() -> None:
    assert report(DONE).endswith("\nbuild every index anew")
    assert report(DONE | {"advice": ""}).endswith("after 1.3 s")
