"""How a replica comes to serve what was published: loaded and warmed beside the old model, then switched in one step.

A release that cannot be loaded is refused once and the old model goes on, so a replica is never without one.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elastic.errors import ElasticError
from elastic.serve.api.replica import ReplicaService
from elastic.serve.retirable import Retirable
from elastic.serve.rollout.release import Release, Releases

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Following:
    """What one replica serves."""

    number: int
    """Of the release."""
    version: str
    """Of the weights."""
    problem: str = ""
    """Why the published release was refused, if it was."""


class Follower:
    """Keeps one service on the published release."""

    def __init__(
        self,
        service: ReplicaService[Any],
        releases: Releases,
        serving: Release,
        load: Callable[[Release], Retirable],
    ) -> None:
        """Follow `releases` from `serving` on; `load` runs in a thread of its own."""
        self._service, self._releases, self._load = service, releases, load
        self._serving = serving
        self._refused: tuple[Release, str] | None = None
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[Following] | None = None

    async def follow(self) -> Following:
        """Serve what is published now, or refuse it; returns what is served then."""
        async with self._lock:
            published = self._releases.published()
            if published != self._serving and not self._has_refused(published):
                await self._switch(published)
            problem = self._refused[1] if self._refused is not None and self._has_refused(published) else ""
            return Following(self._serving.number, self._service.served.version, problem)

    def keep_up(self) -> None:
        """Start to follow, if something else is published and nobody has started yet; does not wait."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self.follow())

    async def _switch(self, release: Release) -> None:
        (loaded,) = await asyncio.gather(asyncio.to_thread(self._load, release), return_exceptions=True)
        if isinstance(loaded, Retirable):
            self._service.swap(loaded)
            self._serving = release
            logger.info("serving release %d, model version %s", release.number, loaded.version)
        elif isinstance(loaded, Exception):
            logger.error("release %d is refused; the old model goes on", release.number, exc_info=loaded)
            problem = str(loaded) if isinstance(loaded, ElasticError) else f"{type(loaded).__name__}: {loaded}"
            self._refused = (release, problem)
        else:
            raise loaded

    def _has_refused(self, release: Release) -> bool:
        return self._refused is not None and self._refused[0] == release
