"""The verb `elastic top`: watch a running server in the terminal."""

import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.live import Live

from elastic.errors import ConfigError, ServerUnavailable
from elastic.serve.telemetry.screen import duration, render
from elastic.serve.telemetry.snapshot import Snapshot

DEFAULT_METRICS = "127.0.0.1:9090"
TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Top:
    """Watch a running server: rates, attainment, quality, the mix of submodels, and where the time goes.

    Reads what `elastic serve --metrics-port 9090` shows, every second, until Ctrl-C. Quantiles are read off the
    metrics' buckets, so they are as coarse as those.

    Example: elastic top 127.0.0.1:9090
    """

    metrics: Annotated[str, tyro.conf.Positional] = DEFAULT_METRICS
    """host:port of the server's metrics, or their URL."""
    once: bool = False
    """Print what happened since the server started, and exit."""
    window_s: float = 10.0
    """Otherwise show what happened over this time."""

    def run(self) -> None:
        """Print once, or keep the screen current."""
        if self.window_s <= 0:
            raise ConfigError("window_s", self.window_s, "must be positive")
        url = metrics_url(self.metrics)
        now = read(url)
        if self.once:
            since = now.before_it_began()
            Console().print(render(since, now, _title(self.metrics, "all", now.at_s - since.at_s)))
            return
        history = deque([now])
        with Live(console=Console(), auto_refresh=False, screen=True) as live:
            while True:
                since = history[0]
                live.update(render(since, now, _title(self.metrics, "last", now.at_s - since.at_s)), refresh=True)
                time.sleep(1.0)
                now = read(url)
                history.append(now)
                while len(history) > 2 and now.at_s - history[1].at_s >= self.window_s:
                    history.popleft()


def metrics_url(address: str) -> str:
    """The URL behind what a user typed: a URL, or host:port."""
    return address if "://" in address else f"http://{address}/metrics"


def read(url: str) -> Snapshot:
    """The metrics now.

    Raises:
        ServerUnavailable: nothing answers there, or nothing that is ours.
    """
    advice = "start one with `elastic serve --metrics-port 9090`, or name a running one's metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            page = answer.read().decode()
        snapshot = Snapshot.parse(page, time.time())
    except urllib.error.URLError as error:
        raise ServerUnavailable(url, f"no metrics ({error.reason})", advice) from error
    except (OSError, ValueError) as error:
        raise ServerUnavailable(url, f"no metrics ({error})", advice) from error
    if not snapshot.values:
        raise ServerUnavailable(url, "has no metrics of elastic's, or no replica has started yet", advice)
    return snapshot


def _title(name: str, word: str, seconds: float) -> str:
    return f"[bold]elastic[/bold] {name}, {word} {duration(seconds)}"
