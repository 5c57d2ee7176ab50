"""Calls to every replica of the running server, from the process that started it."""

import logging

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from elastic.serve.rollout.follow import Following

logger = logging.getLogger(__name__)


def follow_all(app: str, deployment: str, timeout_s: float) -> list[Following]:
    """What each replica serves, once it has followed; empty while one of them could not be asked."""
    states = serve.status().applications[app].deployments[deployment].replica_states
    num_running = sum(count for state, count in states.items() if state == "RUNNING")
    try:
        found = serve.get_app_handle(app).broadcast("follow").results(timeout_s=timeout_s)
    except (RayError, RayServeException, TimeoutError) as error:
        logger.warning("a replica did not answer: %s", error)
        return []
    # This process hears of new replicas a little later than they take calls.
    return found if len(found) == num_running else []


def drain_all(app: str, timeout_s: float) -> int:
    """Let every replica finish what it has accepted, and nothing else; how many calls could not end in time."""
    try:
        return sum(serve.get_app_handle(app).broadcast("drain", timeout_s).results(timeout_s=timeout_s + 1.0))
    except (RayError, RayServeException, TimeoutError) as error:
        logger.warning("not every replica was drained: %s", error)
        return 0
