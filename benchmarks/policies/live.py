"""The live part: the same arrivals sent to `elastic serve`, once per policy, and simulated beside it.

Policies take turns, in a new order for every seed, so that a machine that slows down for a while slows all of them;
each turn has a server of its own that has just started.

The simulator is given two numbers, from a run of the largest submodel alone at a quiet rate, by which no policy is
judged: what an answer spends outside of the model, and how much longer than profiled a batch takes in a server that
also decodes, talks, and shares its cores with the client.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from elastic.bench.inputs import contents
from elastic.bench.load import Load, Samples
from elastic.bench.send import send
from elastic.bench.summary import Service, summarise
from elastic.serve.policies.registry import policy_maker
from elastic.simulate.compare import score
from elastic.simulate.fleet import Fleet, Requests, simulate
from elastic.simulate.service import SlowerTimes
from elastic.simulate.trace import draw

WARM_UP_MS = 4_000.0
"""Sent and answered before anything counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What is sent to a live server."""

    shape: str
    rates: Sequence[float]
    """Requests per second, one image each."""
    slo_ms: float
    seeds: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Fit:
    """What the simulator needs to know of the server around the model."""

    overhead_ms: float
    """Median of what an answer spent outside of the queue and the model."""
    slowdown: float
    """Median of the model time over the profile's median for the same batch."""


def fit(address: str, fleet: Fleet, rate: float, slo_ms: float) -> Fit:
    """Measure the server around the model at a quiet rate, while the largest submodel alone serves."""
    load = _load(address, "poisson", rate, slo_ms, seed=1000, duration_s=10.0)
    samples = _counted(load)
    answered = samples.answered
    top = len(fleet.fronts["image"].levels) - 1
    expected = [fleet.times.draw("image", top, size, luck=0.5) for size in samples.batch_size[answered].tolist()]
    outside = samples.latency_ms - samples.queue_ms - samples.compute_ms
    return Fit(
        overhead_ms=float(np.median(outside[answered])),
        slowdown=float(np.median(samples.compute_ms[answered] / expected)),
    )


def turns(policies: Sequence[str], seeds: int) -> Iterator[tuple[int, str]]:
    """Every policy once for each seed, in an order of its own."""
    for seed in range(seeds):
        for position in np.random.default_rng(seed).permutation(len(policies)):
            yield seed, policies[int(position)]


def run(
    address: str, policy: str, traffic: Traffic, seed: int, on_done: Callable[[], None]
) -> Iterator[dict[str, object]]:
    """Send every trace of a seed to a running server; each row holds what the client saw and the raw samples of one."""
    for rate in traffic.rates:
        load = _load(address, traffic.shape, rate, traffic.slo_ms, seed, traffic.duration_s)
        samples = _counted(load)
        yield {"rate": rate, "policy": policy, "seed": seed, **_seen(samples), "samples": _raw(samples)}
        on_done()


def simulate_same(fleet: Fleet, fitted: Fit, policy: str, traffic: Traffic) -> Iterator[dict[str, object]]:
    """The same arrivals through the simulator."""
    beside = replace(
        fleet,
        policy=policy_maker(policy, fleet.fronts),
        times=SlowerTimes(fleet.times, fitted.slowdown),
        overhead_ms=fitted.overhead_ms,
    )
    for rate in traffic.rates:
        for seed in range(traffic.seeds):
            at_ms = _arrivals(traffic.shape, rate, seed, traffic.duration_s)
            requests = Requests(at_ms=at_ms, slo_ms=np.full(len(at_ms), traffic.slo_ms))
            counted = at_ms >= WARM_UP_MS
            found = score(simulate(beside, requests, seed), counted)
            yield {"rate": rate, "policy": policy, "seed": seed, **asdict(found)}


def _load(address: str, shape: str, rate: float, slo_ms: float, seed: int, duration_s: float) -> Load:
    at_ms = _arrivals(shape, rate, seed, duration_s)
    images = contents(None, 0.0, np.random.default_rng(seed))
    return Load(address=address, contents=images, at_ms=at_ms, slo_ms=np.full(len(at_ms), slo_ms), connections=2)


def _counted(load: Load) -> Samples:
    samples = send(load)
    return samples.between(WARM_UP_MS, samples.end_ms)


def _arrivals(shape: str, rate: float, seed: int, duration_s: float) -> np.ndarray:
    return draw(shape, rate, WARM_UP_MS + 1000 * duration_s, seed)


def _seen(samples: Samples) -> dict[str, object]:
    summary = summarise(samples)
    overall: Service = summary.overall
    accepted, answered = samples.outcome != "refused", samples.answered.any()
    return {
        "attainment": overall.attainment,
        "quality_met": overall.quality_met,
        "quality_all": overall.quality_all,
        "refused": overall.shares["refused"],
        "kept": float(samples.met[accepted].mean()) if accepted.any() else float("nan"),
        "p50_ms": overall.latency_ms.p50,
        "p99_ms": overall.latency_ms.p99,
        # Of batches, as the simulator counts, and not of answers.
        "mean_batch": samples.answered.sum() / (1 / samples.batch_size[samples.answered]).sum() if answered else np.nan,
        "refusal_p50_ms": overall.refusal_ms.p50,
        "refusal_p99_ms": overall.refusal_ms.p99,
        "lag_p99_ms": summary.lag_ms.p99,
        "errors": dict(summary.errors),
        "submodels": dict(summary.submodels),
    }


def _raw(samples: Samples) -> dict[str, list[float]]:
    names = ("intended_ms", "done_ms", "queue_ms", "compute_ms")
    return {name: np.round(getattr(samples, name), 2).tolist() for name in names}
