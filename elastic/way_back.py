"""How long answers take on their way back, learned by a client so that its budgets hold where answers are read.

A server cannot know it. But it says what was left of a budget when it answered, and the client knows what is left when
it has read the answer; the difference is what that took, whatever the clocks say. So a client tells a deadline that is
nearer by as much, and the server chooses a submodel that is as much faster. Pure: clocks are the deadline's.
"""

from elastic.messages import Deadline


class WayBack:
    """What one client keeps back of its budgets; threads may share it, as a lost step does no harm.

    A step towards every measured way, larger upwards than downwards, so that most answers take less than is kept back.
    """

    STEP_UP, STEP_DOWN = 0.3, 0.05
    LARGEST_SHARE = 0.5
    """Of a budget: a model that has no time at all answers nothing, and nothing would be learned any more."""
    SURPRISE_MS = 5.0
    """A way is believed up to twice what is known and this: a client that was paused is not a slow network."""

    def __init__(self) -> None:
        self._ms = 0.0

    def kept_ms(self, budget_ms: float | None) -> float:
        """What to keep back of a budget; None has no end to keep."""
        return 0.0 if budget_ms is None else min(self._ms, self.LARGEST_SHARE * budget_ms)

    def learn(self, deadline: Deadline, slack_ms: float) -> None:
        """From an answer that has just been read; `slack_ms` is what the server says was left when it answered."""
        if deadline.budget_ms is None:
            return
        way_ms = slack_ms + deadline.kept_ms - 1000 * deadline.left_s()
        believed_ms = min(max(way_ms, 0.0), 2 * self._ms + self.SURPRISE_MS)
        step = self.STEP_UP if believed_ms > self._ms else self.STEP_DOWN
        self._ms += step * (believed_ms - self._ms)
