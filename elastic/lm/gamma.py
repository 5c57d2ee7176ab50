"""How many tokens to draft at a time: the number that is fastest by what was measured so far, or none.

With acceptance rate a, a draft of g tokens brings (1 - a^(g+1)) / (1 - a) tokens. It takes 1 + c g times as long as a
plain step, c being what a drafted token costs, its verification included. The quotient is the speed-up.

Source: Leviathan et al. (arXiv 2211.17192) section 3.4, there with verification for free beside the step it replaces.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import median
from typing import Protocol, runtime_checkable

MAX_GAMMA = 16
"""Most tokens that are drafted at a time."""
PROBE_GAMMA = 2
"""Tokens of a draft that is made to see whether drafts pay."""
NUM_FIRST_ROUNDS = 3
"""Plain rounds at the start, and probing ones behind them."""
PROBE_EVERY = 64
"""Rounds between two that are made only to measure: a plain one while drafts pay, a drafted one while they do not."""
WORTHWHILE = 1.02
"""Least predicted speed-up at which drafts are made."""
WINDOW = 15
"""Latest rounds of each length whose median time counts."""
REFRESH_EVERY = 8
"""Rounds after which the choice is thought over."""
FORGET_AFTER = 512
"""Rounds after which the times of a length that was not drafted since count no more."""
DECAY = 0.98
"""Weight of earlier rounds in the acceptance rate, per round."""


@runtime_checkable
class GammaPolicy(Protocol):
    """Decides before each round, and is told afterwards what came of it."""

    @property
    def limit(self) -> int:
        """The most it will ever choose."""
        ...

    def choose(self) -> int:
        """Tokens to draft in the next round."""
        ...

    def observe(self, gamma: int, num_accepted: Sequence[int], seconds: float) -> None:
        """Take in a round: its drafted tokens, those accepted of each sequence, and how long it took."""
        ...


class FixedGamma:
    """Always the same."""

    def __init__(self, gamma: int) -> None:
        self.limit = gamma

    def choose(self) -> int:
        """That number."""
        return self.limit

    def observe(self, gamma: int, num_accepted: Sequence[int], seconds: float) -> None:
        """Nothing follows from it."""


class AdaptiveGamma:
    """The fastest by the acceptance rate and the times of the latest rounds."""

    limit = MAX_GAMMA

    def __init__(self) -> None:
        self._seconds: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._latest: dict[int, int] = {}
        self._accepted = self._tested = 0.0
        self._rounds = self._best = 0

    @property
    def acceptance_rate(self) -> float:
        """Of draft tokens that the target came to judge, the share it accepted; one half before any."""
        return (self._accepted + 0.5) / (self._tested + 1.0)

    def choose(self) -> int:
        """The best length; now and then another one, to see whether it still is."""
        if self._rounds < NUM_FIRST_ROUNDS or not self._seconds[0]:
            return 0
        if self._rounds < 2 * NUM_FIRST_ROUNDS or not self._tested:
            return PROBE_GAMMA
        if self._rounds % REFRESH_EVERY == 0 or self._rounds == 2 * NUM_FIRST_ROUNDS:
            self._best = self._find_best()
        if self._rounds % PROBE_EVERY == 0:
            return 0 if self._best else PROBE_GAMMA
        return self._best

    def _find_best(self) -> int:
        for length in [length for length, latest in self._latest.items() if length and self._is_old(latest)]:
            del self._latest[length], self._seconds[length]
        best = max(range(MAX_GAMMA + 1), key=self.predict)
        return best if self.predict(best) >= WORTHWHILE else 0

    def _is_old(self, latest: int) -> bool:
        return self._rounds - latest > FORGET_AFTER

    def observe(self, gamma: int, num_accepted: Sequence[int], seconds: float) -> None:
        """Take in a round."""
        self._rounds += 1
        self._latest[gamma] = self._rounds
        self._seconds[gamma].append(seconds)
        if gamma:
            accepted = sum(num_accepted)
            rejections = sum(count < gamma for count in num_accepted)
            self._accepted = DECAY * self._accepted + accepted
            self._tested = DECAY * self._tested + accepted + rejections

    def predict(self, gamma: int) -> float:
        """Speed-up over plain rounds that drafts of this length would bring."""
        return speedup(self.acceptance_rate, self.cost(gamma), gamma)

    def cost(self, gamma: int) -> float:
        """What one token of such drafts costs, verification included, in plain rounds.

        Lengths that were not tried yet are taken to cost per token what the nearest one that was does.
        """
        tried = [length for length, seconds in self._seconds.items() if length and seconds]
        if not tried:
            return 1.0
        nearest = min(tried, key=lambda length: (abs(length - gamma), length))
        plain_s = median(self._seconds[0])
        return max(0.0, median(self._seconds[nearest]) / plain_s - 1) / nearest


def speedup(acceptance_rate: float, cost: float, gamma: int) -> float:
    """Tokens per time with drafts of `gamma` tokens over those without, at `cost` plain steps per drafted token."""
    return expected_tokens(acceptance_rate, gamma) / (1 + cost * gamma)


def expected_tokens(acceptance_rate: float, gamma: int) -> float:
    """What a draft brings on average, the target's own token among them, if every token stands as often."""
    return sum(acceptance_rate**position for position in range(gamma + 1))
