"""How much longer than predicted things are taken to be, learned from the promises that were kept and broken."""


class Headroom:
    """What predictions are multiplied with before a promise rests on them.

    Every broken promise raises it and every kept one lowers it a little, so that in the long run `MISSED` of all are
    broken, however predictions err. Too much of it refuses what could have been answered, and saves slack for nothing;
    and who refuses everything makes no promises to learn from, so it returns to its start with a half-life.

    Source: adaptive conformal inference (Gibbs and Candes, arXiv 2106.00263, equation 2).
    """

    MISSED = 0.005
    """Share of promises to break: half of the one in a hundred that may be, because they break in bursts."""
    STEP = 0.02
    START, LOWEST, HIGHEST = 1.15, 1.0, 1.6
    HALF_LIFE_MS = 10_000.0

    def __init__(self, start: float = START) -> None:
        self._start = start
        self._learned = (start, 0.0)
        """A value and when it was learned."""

    def at(self, now_ms: float) -> float:
        """The value at a time that is not before what was learned last."""
        value, since_ms = self._learned
        return self._start + (value - self._start) * 0.5 ** (max(0.0, now_ms - since_ms) / self.HALF_LIFE_MS)

    def observe(self, num_kept: int, num_broken: int, now_ms: float) -> None:
        """Learn from promises whose outcome is known."""
        change = self.STEP * (num_broken * (1 - self.MISSED) - num_kept * self.MISSED)
        self._learned = (min(self.HIGHEST, max(self.LOWEST, self.at(now_ms) + change)), now_ms)
