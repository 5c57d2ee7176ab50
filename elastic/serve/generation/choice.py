"""Which submodel answers: the best whose tokens come fast enough beside everything that runs already.

Sequences share the model thread by turns (`turns.py`). One that takes t ms of the model's time per token, and asked for
a token every d ms, needs the share t / d of the thread. As long as the shares of all that asked for something add up
to less than the whole, serving the one first whose next token is due first keeps all of them in the mean. Sequences
without an objective take what is left, and so keep nobody out.

Pure: no torch, no ray, no clock. Source of the bound: earliest-deadline-first scheduling, Liu and Layland (1973)
section 7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from elastic.errors import InvalidRequest, Overloaded, SloInfeasible
from elastic.serve.policy import Limit
from elastic.submodel import Submodel

HEADROOM = 1.15
"""Tokens are counted as so much slower before a promise rests on them, as on the image side."""
MEMORY_STEPS, MEMORY_TOKENS = 50, 200
"""About how many of the latest plain steps, and tokens of sequences with drafts, predicted times are the mean of."""


@dataclass(frozen=True, slots=True)
class TokenSlo:
    """What one request asks for."""

    token_ms: float = inf
    """Mean time per token after the first; infinite: any."""
    max_nats: float | None = None
    """Highest acceptable validation loss of the submodel, in nats per token."""

    def __post_init__(self) -> None:
        if not self.token_ms > 0:
            raise InvalidRequest("slo.token_latency_ms", f"{self.token_ms} is not a positive number")
        if self.max_nats is not None and not 0 < self.max_nats < inf:
            raise InvalidRequest("slo.max_nats", f"{self.max_nats} is not a positive, finite number")


@dataclass(frozen=True, slots=True)
class Option:
    """A submodel that can be chosen."""

    submodel: Submodel
    name: str
    """The granularity's name, or the text form of a mixed submodel."""
    nats: float | None
    """Validation loss per token; None if the run was not evaluated."""
    token_ms: float
    """Predicted time of the model per token of one sequence."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a sequence that runs takes of the model thread."""

    token_ms: float
    """Time of the model per token."""
    slo_ms: float
    """Time per token that it asked for; infinite: any."""

    @property
    def needed(self) -> float:
        """The part of the thread that keeps its objective."""
        return self.token_ms / self.slo_ms


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for a request, and why so."""

    option: Option
    predicted_ms: float
    """Time per token, with turns for what runs already."""
    limit: Limit
    """What kept the server from a better submodel."""

    @property
    def reason(self) -> str:
        """The same for people."""
        words = {
            Limit.NONE: "nothing better is there",
            Limit.DEADLINE: "a better one needs more time per token than was asked for",
            Limit.BACKLOG: "a better one would have made this or another sequence that runs too slow",
        }
        return f"{self.option.name}: {words[self.limit]}"


def choose(options: Sequence[Option], slo: TokenSlo, running: Sequence[Share], retry_after_ms: float) -> Choice:
    """The best option that keeps this objective and those of all that runs.

    Args:
        options: ascending in quality.
        slo: of the new request.
        running: what runs already.
        retry_after_ms: when something of that is expected to end, for a refusal.

    Raises:
        InvalidRequest: a quality was asked for, and nothing was evaluated.
        SloInfeasible: not even an idle server could do it.
        Overloaded: it could not be done beside what runs.
    """
    taken = sum(share.needed for share in running)
    allowed, limit = _allowed(options, slo), Limit.NONE
    for option in reversed(allowed):
        needed = option.token_ms / slo.token_ms
        if needed * HEADROOM > 1:
            limit = Limit.DEADLINE
        elif slo.token_ms < inf and (taken + needed) * HEADROOM > 1:
            limit = Limit.BACKLOG
        else:
            return Choice(option, _predicted_ms(option, slo, running), limit)
    fastest = min(allowed, key=lambda option: option.token_ms)
    if fastest.token_ms * HEADROOM > slo.token_ms:
        best = f"the fastest allowed ({fastest.name}) needs {fastest.token_ms:.2f} ms, and {HEADROOM - 1:.0%} are kept"
        raise SloInfeasible(f"token_latency_ms={slo.token_ms:g}", best, "raise token_latency_ms")
    reason = (
        f"{len(running)} sequences hold {taken:.0%} of the model's time, and {fastest.name} at one token every "
        f"{slo.token_ms:g} ms needs {fastest.token_ms / slo.token_ms:.0%}"
    )
    raise Overloaded(reason, retry_after_ms)


def _allowed(options: Sequence[Option], slo: TokenSlo) -> Sequence[Option]:
    if slo.max_nats is None:
        return options
    known = {option: option.nats for option in options if option.nats is not None}
    if not known:
        raise InvalidRequest("slo.max_nats", "this model was not evaluated, so the losses of its submodels are unknown")
    allowed = [option for option, nats in known.items() if nats <= slo.max_nats]
    if not allowed:
        best = min(known, key=lambda option: known[option])
        raise SloInfeasible(f"max_nats={slo.max_nats:g}", f"the best ({best.name}) reaches {best.nats:.3f}", "raise it")
    return allowed


def _predicted_ms(option: Option, slo: TokenSlo, running: Sequence[Share]) -> float:
    """With equal turns, which is how it goes unless that would be too slow for the objective."""
    return min(option.token_ms + sum(share.token_ms for share in running), max(slo.token_ms, option.token_ms))


class TokenTimes:
    """Time of the model per token, by submodel and by whether a draft may help: as measured first, then as it is.

    What slows one submodel down (other work on the machine) slows all of them down, also those that have not run since;
    what drafts bring differs between submodels, and begins at nothing.
    """

    def __init__(self, measured_ms: Mapping[Submodel, float]) -> None:
        """Begin with the times of plain steps."""
        self._measured_ms = dict(measured_ms)
        self._slowness = 1.0
        self._gains = dict.fromkeys(measured_ms, 1.0)

    def token_ms(self, submodel: Submodel, drafts: bool) -> float:
        """What is expected of the next token."""
        return self._measured_ms[submodel] * self._slowness * (self._gains[submodel] if drafts else 1.0)

    def observe(self, submodel: Submodel, drafts: bool, ms: float, num_tokens: int, num_drafted: int = 0) -> None:
        """Take in a step that brought tokens, and did not read a prompt, of a sequence that a draft may help or not."""
        if drafts:
            ratio = ms / num_tokens / self.token_ms(submodel, drafts=False)
            self._gains[submodel] += min(1.0, num_tokens / MEMORY_TOKENS) * (ratio - self._gains[submodel])
        if not num_drafted:
            self._slowness += (ms / self._measured_ms[submodel] - self._slowness) / MEMORY_STEPS
