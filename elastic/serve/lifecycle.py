"""What Ray Serve and a deploy ask of every replica, whatever it serves: its start, health, model, drain and end."""

import sys
from typing import Any, Generic, TypeVar

import torch

from elastic.serve.api.health import HealthCalls
from elastic.serve.api.replica import ReplicaService
from elastic.serve.config import ServeConfig
from elastic.serve.rollout.follow import Follower, Following
from elastic.serve.telemetry.logs import log_as_json

SWITCH_S = 0.0005
"""How long a thread keeps the interpreter's lock when another asks for it, a tenth of Python's default.

The event loop gives the lock away whenever it reads or writes a socket, and then waits for a thread that decodes.
"""


def settle_process(config: ServeConfig) -> None:
    """Make this process a replica's: its threads, who runs next among them, and its log."""
    torch.set_num_threads(config.num_threads)
    sys.setswitchinterval(SWITCH_S)
    log_as_json()


Service = TypeVar("Service", bound=ReplicaService[Any])


class ReplicaLifecycle(HealthCalls, Generic[Service]):
    """The methods of a replica that are not calls of its users; its constructor sets the three attributes."""

    _service: Service
    _follower: Follower

    async def follow(self) -> Following:
        """Serve what is published now, or say why not; called on every replica by a deploy."""
        return await self._follower.follow()

    async def drain(self, timeout_s: float) -> int:
        """Accept nothing new and finish what was accepted; returns how many calls could not end in time."""
        self._health.drain()
        return await self._service.drain(timeout_s)

    async def check_health(self) -> None:
        """Ray Serve's own probe: a replica whose model is not sound is replaced.

        Draining does not count. A replica that started while something was deployed catches up here.
        """
        is_sound = await self._health.is_sound()
        self._service.set_sound(is_sound)
        if not is_sound:
            raise RuntimeError("the model is stuck or its canary inference failed")
        self._follower.keep_up()

    def __del__(self) -> None:
        # Serve deletes the object when the replica stops; the constructor may have failed before.
        service: Service | None = self.__dict__.get("_service")
        if service is not None:
            service.close()
