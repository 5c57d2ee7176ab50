"""Puts another run into a running server, or the one before back; in the process that started the server.

A run is copied, loaded and tried here first, so that what is broken never reaches a replica. Then it is published and
every replica follows. If one refuses it (its machine may differ), all return to the old one: a deploy leaves every
replica on the new model or every replica on the old.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from elastic.errors import CheckpointError, ConfigError, ProfileError, ServerUnavailable
from elastic.serve.config import ServeConfig
from elastic.serve.policies.registry import policy_maker
from elastic.serve.resident import ResidentModel
from elastic.serve.rollout.follow import Following
from elastic.serve.rollout.release import Release, Releases
from elastic.serve.served import load_fronts

DEPLOY_TIMEOUT_S = 300.0
POLL_S = 0.1

FollowAll = Callable[[float], Sequence[Following]]
"""Tells every replica to follow and returns what each serves then; empty while one cannot be reached."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release that this machine can serve."""

    release: Release
    version: str
    """Of the weights."""
    offers: tuple[str, ...]
    """What callers may rely on, in words that its lack is told with."""
    advice: str = ""
    """What to do about everything that another model has answered before."""

    @property
    def name(self) -> str:
        """Of the run."""
        return self.release.run.name


TryOut = Callable[[Release, ServeConfig], Candidate]
"""Loads a release as a replica would and has it answer something, or raises."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a deploy has changed."""

    old_name: str
    old_version: str
    name: str
    version: str
    num_replicas: int
    took_s: float
    """From the request to the moment when every replica answered with the new version."""
    advice: str = ""
    """What to do now; nothing if the weights are the same."""


class Deployer:
    """Knows what is served and what was served before; one deploy at a time."""

    def __init__(
        self,
        config: ServeConfig,
        releases: Releases,
        follow_all: FollowAll,
        *,
        try_out: TryOut | None = None,
        timeout_s: float = DEPLOY_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Copy, try (`try_out_encoder`, if not said otherwise) and publish the run of the settings, for all replicas.

        Raises:
            CheckpointError, ProfileError: it cannot be served.
        """
        self._config, self._releases, self._follow_all = config, releases, follow_all
        self._try, self._timeout_s, self._clock, self._sleep = try_out or try_out_encoder, timeout_s, clock, sleep
        self._lock = threading.Lock()
        self._previous: Candidate | None = None
        self._current = self._try_out(config.run)
        releases.publish(self._current.release)

    def deploy(self, run: Path, *, allow_narrower: bool = False) -> Deployed:
        """Serve `run` instead of what is served now.

        Args:
            run: a run directory with tables of this machine.
            allow_narrower: even if it lacks a modality or a width that callers may use now.

        Raises:
            CheckpointError, ProfileError: it cannot be served, or lacks something; the old model goes on.
            ConfigError: another deploy is under way, or the server's policy cannot choose from this model.
            ServerUnavailable: a replica did not answer in time; the old model goes on.
        """
        began_s = self._clock()
        with self._alone():
            candidate = self._try_out(run)
            try:
                if not allow_narrower:
                    check_not_narrower(self._current, candidate)
                return self._replace(candidate, began_s)
            except BaseException:
                self._releases.remove(candidate.release)
                raise

    def rollback(self) -> Deployed:
        """Serve again what was served before the last deploy; a second time returns to where it began.

        Raises:
            ConfigError: nothing was served before, or another deploy is under way.
            CheckpointError, ServerUnavailable: a replica did not follow; what is served now goes on.
        """
        began_s = self._clock()
        with self._alone():
            if self._previous is None:
                raise ConfigError("rollback", self._current.name, "is the first model of this server; deploy one first")
            return self._replace(self._previous, began_s)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a message to the control socket asks for."""
        if request.get("verb") == "rollback":
            return asdict(self.rollback())
        return asdict(self.deploy(Path(request["run"]), allow_narrower=request["allow_narrower"]))

    def _try_out(self, run: Path) -> Candidate:
        release = self._releases.copy(run)
        try:
            return self._try(release, self._config)
        except (CheckpointError, ProfileError) as error:
            self._releases.remove(release)
            # The caller knows the run, not our copy of it.
            raise type(error)(*(text.replace(str(release.run), str(run)) for text in error.args)) from error
        except BaseException:
            self._releases.remove(release)
            raise

    def _replace(self, new: Candidate, began_s: float) -> Deployed:
        old = self._current
        try:
            num_replicas = self._switch_to(new)
        except BaseException:
            # Whatever it was: a replica that starts later must not serve what was not deployed.
            self._releases.publish(old.release)
            self._follow_all(self._timeout_s)
            raise
        dropped, self._previous, self._current = self._previous, old, new
        if dropped is not None and dropped is not new:
            self._releases.remove(dropped.release)
        advice = "" if old.version == new.version else new.advice
        took_s = self._clock() - began_s
        return Deployed(old.name, old.version, new.name, new.version, num_replicas, took_s, advice)

    def _switch_to(self, candidate: Candidate) -> int:
        """Publish it and wait until every replica serves it; the number of replicas."""
        self._releases.publish(candidate.release)
        deadline_s = self._clock() + self._timeout_s
        while (left_s := deadline_s - self._clock()) > 0:
            found = self._follow_all(left_s)
            for following in found:
                if following.problem:
                    advice = "the old model goes on; see the log of that replica"
                    raise CheckpointError(candidate.name, f"a replica refused it ({following.problem})", advice)
            if found and all(following.number == candidate.release.number for following in found):
                return len(found)
            self._sleep(POLL_S)
        problem = f"not every replica serves {candidate.name} after {self._timeout_s:g} s"
        raise ServerUnavailable(f"port {self._config.port}", problem, "the old model goes on; read the server's log")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise ConfigError("deploy", self._config.port, "another deploy to this server is under way; wait for it")
        try:
            yield
        finally:
            self._lock.release()


def try_out_encoder(release: Release, config: ServeConfig) -> Candidate:
    """Load a release as a replica would, and compute every modality with its smallest and largest submodel.

    Raises:
        CheckpointError: damaged, or it answers with values that are not finite.
        ProfileError: no usable tables.
        ConfigError: the configured policy cannot choose from this model.
    """
    model = ResidentModel.load(release.run, config.dtype, config.device)
    fronts = load_fronts(model, replace(config, run=release.run))
    policy_maker(config.policy, fronts)
    for modality, front in fronts.items():
        for level in (front.levels[0], front.levels[-1]):
            if not np.isfinite(model.compute(modality, level.submodel, [model.example(modality)])).all():
                problem = f"{level.name} embeds a fixed {modality} into values that are not finite"
                raise CheckpointError(str(release.run), problem, "train the model again")
    widths = (f"width {width}" for width in model.encoder.space.embed_dims)
    offers = (*(f"{modality}s" for modality in sorted(fronts)), *widths)
    advice = "embeddings of the two models cannot be compared: build every index anew before you search it"
    return Candidate(release, model.version, offers, advice)


def check_not_narrower(old: Candidate, new: Candidate) -> None:
    """Accept what offers everything that callers may rely on now.

    Raises:
        CheckpointError: something is missing.
    """
    if lost := [name for name in old.offers if name not in new.offers]:
        problem = f"does not offer {', '.join(lost)}, which {old.name} does"
        raise CheckpointError(new.name, problem, "deploy it with --allow-narrower if no caller needs that")
