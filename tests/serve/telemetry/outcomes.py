"""What observers hear, invented."""

import numpy as np

from elastic.errors import Overloaded
from elastic.serve.batching import Front, Work
from elastic.serve.engine import Computed, RanBatch, Request
from elastic.serve.observer import Outcome
from elastic.serve.policy import Limit, Run
from elastic.submodel import Slo


def computed(front: Front, level: int = 1, queue_ms: float = 2.0) -> Computed:
    """One input of an answer: 1.5 ms decoded, then queued, then 8 ms in a batch of two that was to take 7."""
    return Computed(
        embedding=np.zeros(64, np.float32),
        embed_dim=64,
        modality="image",
        level=front.levels[level],
        quality=front.levels[level].quality[64],
        queue_ms=queue_ms,
        compute_ms=8.0,
        predicted_ms=7.0,
        preprocess_ms=1.5,
        batch_size=2,
        limit=Limit.NONE,
    )


class Sent:
    """A caller that sent metadata."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._metadata.items())

    def peer(self) -> str:
        return "ipv4:127.0.0.1:4000"


def answered(*items: Computed, slack_ms: float = 30.0, caller: Sent | None = None) -> Outcome:
    """A request with a budget of 50 ms that was answered."""
    request = Request(tuple(item.modality for item in items), Slo(latency_ms=50.0), 0.0, 50.0)
    return Outcome(request, items, None, 50.0 - slack_ms, slack_ms, caller)


def refused() -> Outcome:
    """A request of two images and a text that was refused at once."""
    request = Request(("image", "text", "image"), Slo(latency_ms=50.0), 0.0, 50.0)
    return Outcome(request, (), Overloaded("busy", 9.0), 0.1, 49.9)


def batch(front: Front, num_works: int, compute_ms: float, predicted_ms: float) -> RanBatch:
    """A batch of images at the second level."""
    works = tuple(Work(id, "image", 50.0, 50.0) for id in range(num_works))
    return RanBatch(Run(1, works, predicted_ms, Limit.NONE), front.levels[1], compute_ms)
