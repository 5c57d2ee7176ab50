"""A front with round numbers, so that a test can say by hand what should happen."""

import pytest

from elastic.serve.batching import Costs, Front, Level
from elastic.submodel import Submodel

DEPTH = 2
MAX_BATCH = 8


def level(name: str, ffn_dim: int, first_ms: float, more_ms: float, quality: float) -> Level:
    """A level whose batch of n takes `first_ms + (n - 1) * more_ms`, with half the width worth 0.1 less."""
    times = tuple(first_ms + extra * more_ms for extra in range(MAX_BATCH))
    return Level(Submodel((ffn_dim,) * DEPTH), name, times, {64: quality, 32: quality - 0.1})


@pytest.fixture
def front() -> Front:
    """S: 4 ms + 1 ms per further input, R@1 0.3. M: 8 + 2, 0.4. L: 12 + 4, 0.5. XL: 20 + 8, 0.6."""
    return Front(
        (
            level("S", 16, 4.0, 1.0, 0.3),
            level("M", 32, 8.0, 2.0, 0.4),
            level("L", 64, 12.0, 4.0, 0.5),
            level("XL", 128, 20.0, 8.0, 0.6),
        )
    )


@pytest.fixture
def costs(front: Front) -> Costs:
    """Both modalities served from the same front, uncorrected."""
    return Costs({"image": front, "text": front}, {"image": (1.0,) * 4, "text": (1.0,) * 4})
