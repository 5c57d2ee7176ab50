"""The verb `elastic deploy`: put another run into a running server without failing a request, or return."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from elastic.client import DEFAULT_ADDRESS
from elastic.errors import ConfigError
from elastic.serve.rollout.control import call, socket_path

TIMEOUT_S = 1_200.0
"""More than a server ever takes, so that its own message is seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deploy:
    """Put another run into a running `elastic serve`, on this machine, without failing a request.

    An image-text run needs a quality table and a latency table of this machine (`elastic evaluate`, `elastic profile`).
    The server tries it first; what is damaged, lacks tables or answers nonsense is refused and the old model goes on.
    Returns when every replica answers with the new model.

    Example: elastic deploy runs/icons_v2
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory to serve; left out with --rollback."""
    rollback: bool = False
    """Return to the model before the last deploy; a second time, to the one after it."""
    server: str = DEFAULT_ADDRESS
    """host:port of the server; it must run on this machine, as this user."""
    allow_narrower: bool = False
    """Deploy it even if it lacks a modality, embedding width, granularity or tokenizer of the served model."""

    def run(self) -> None:
        """Ask the server, wait, and print what changed."""
        if (self.run_dir is None) is not self.rollback:
            raise ConfigError("run", self.run_dir, "name a run to deploy, or --rollback without one")
        answer = call(socket_path(port_of(self.server)), self._request(), TIMEOUT_S)
        Console(soft_wrap=True, highlight=False).print(report(answer))

    def _request(self) -> dict[str, object]:
        if self.run_dir is None:
            return {"verb": "rollback"}
        return {"verb": "deploy", "run": str(self.run_dir.resolve()), "allow_narrower": self.allow_narrower}


def port_of(server: str) -> int:
    """The port of a `host:port`.

    Raises:
        ConfigError: there is none in it.
    """
    port = server.rpartition(":")[2]
    if not port.isdigit():
        raise ConfigError("server", server, "must be host:port, such as 127.0.0.1:9000")
    return int(port)


def report(deployed: dict[str, object]) -> str:
    """What a person needs to know about a deploy that is done."""
    change = "{old_name} {old_version} -> {name} {version}".format(**deployed)
    lines = [f"serving {change} on {deployed['num_replicas']} replica(s) after {deployed['took_s']:.1f} s"]
    if deployed["advice"]:
        lines.append(str(deployed["advice"]))
    return "\n".join(lines)
