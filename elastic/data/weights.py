"""How often each stream is used, segment by segment.

Needs neither torch nor the rest of the feed, because the `Board`, a process of its own, is made of little else.
"""

from typing import TypeAlias

import numpy as np

from elastic.errors import ConfigError

Weights: TypeAlias = tuple[float, ...]
"""Relative frequency of each stream, in the order of the configuration."""


class WeightBook:
    """Stream weights by segment: what is known, and what a segment uses."""

    def __init__(self, initial: Weights, by_segment: dict[int, Weights], *, is_adaptive: bool) -> None:
        self._initial = initial
        self._is_adaptive = is_adaptive
        self.by_segment = dict(by_segment)

    def get(self, segment: int) -> Weights | None:
        """The weights of a segment; `None` if an adaptive feed still waits for them."""
        if segment in self.by_segment:
            return self.by_segment[segment]
        if self._is_adaptive and segment > 0:
            return None
        earlier = [known for known in self.by_segment if known < segment]
        return self.by_segment[max(earlier)] if earlier else self._initial

    def set(self, segment: int, weights: Weights) -> None:
        """See `Feed.set_weights`."""
        check_weights(weights, len(self._initial))
        if not self._is_adaptive:
            raise ConfigError("feed.is_adaptive", False, "must be true to set weights during a run")
        expected = max(self.by_segment, default=0) + 1
        if segment != expected:
            raise ConfigError("segment", segment, f"must be {expected}, the next one")
        self.by_segment[segment] = tuple(weights)


def check_weights(weights: Weights, num_streams: int) -> np.ndarray:
    """Probabilities of the streams.

    Raises:
        ConfigError: not one weight per stream, a negative one, or none positive.
    """
    values = np.asarray(weights, np.float64)
    if values.shape != (num_streams,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ConfigError("weights", weights, f"needs {num_streams} finite weights, none negative, one above zero")
    return values / values.sum()
