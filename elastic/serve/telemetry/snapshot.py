"""What a metrics page says, and what happened between two of them: the numbers behind `elastic top`.

Pure and light: no ray, no torch, no clock. Names are those of `metrics.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

from prometheus_client.parser import text_string_to_metric_families

from elastic.serve.observer import MET, NOT_OURS

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its sorted labels."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading of a server's metrics."""

    at_s: float
    """When it was read, since 1970."""
    values: Mapping[Series, float]

    @classmethod
    def parse(cls, page: str, at_s: float) -> "Snapshot":
        """Read Prometheus' text format; what is not ours is left out.

        Raises:
            ValueError: the page is something else.
        """
        samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
        ours = (sample for sample in samples if sample.name.startswith("elastic_"))
        return cls(at_s, {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in ours})

    @property
    def started_s(self) -> Mapping[str, float]:
        """When each replica that lives was started."""
        name = "elastic_replica_start_time_seconds"
        return {dict(labels)["replica"]: value for (found, labels), value in self.values.items() if found == name}

    def before_it_began(self) -> "Snapshot":
        """The empty one, from when the oldest replica was started."""
        return Snapshot(min(self.started_s.values(), default=self.at_s), {})


@dataclass(frozen=True, slots=True)
class Submodel:
    """One submodel's part in what was computed."""

    modality: str
    granularity: str
    quality: float
    num_inputs: float


class Interval:
    """What happened between two snapshots of one server; gauges are those of the later one."""

    def __init__(self, earlier: Snapshot, later: Snapshot) -> None:
        self.seconds = max(later.at_s - earlier.at_s, 1e-3)
        self.later = later
        self._earlier = earlier

    def total(self, name: str, **labels: str) -> float:
        """How much a counter grew, summed over all series that carry the labels."""
        return sum(growth for _, growth in self._growths(name, labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The same for each value of one more label."""
        found: dict[str, float] = {}
        for own, growth in self._growths(name, labels):
            found[own[label]] = found.get(own[label], 0.0) + growth
        return found

    def gauge(self, name: str, **labels: str) -> float:
        """A gauge's sum over the replicas."""
        return sum(value for _, value in _matching(self.later.values, name, labels))

    def quantiles(self, name: str, shares: Sequence[float]) -> list[float]:
        """Quantiles of a histogram, straight between the bounds of their buckets; NaN if it is empty."""
        buckets = {float(bound): count for bound, count in self.by("le", f"{name}_bucket").items()}
        return [quantile(buckets, share) for share in shares]

    @property
    def attainment(self) -> float:
        """Share met of the requests that the server could have met; NaN without any."""
        return self.attainment_of()

    def attainment_of(self, **labels: str) -> float:
        """The same for the series that carry the labels."""
        outcomes = self.by("outcome", "elastic_requests_total", **labels)
        return _share(outcomes.get(MET, 0.0), sum(n for name, n in outcomes.items() if name not in NOT_OURS))

    @property
    def refused_share(self) -> float:
        """Of all requests, those turned away at once because of the load."""
        outcomes = self.by("outcome", "elastic_requests_total")
        return _share(outcomes.get("refused", 0.0), sum(outcomes.values()))

    @property
    def qualities(self) -> dict[str, float]:
        """Mean measured quality of what was answered, by modality: the two are measured by different tasks."""
        counts = self.by("modality", "elastic_served_inputs_total")
        sums = self.by("modality", "elastic_served_quality_total")
        return {modality: sums[modality] / count for modality, count in sorted(counts.items()) if count}

    @property
    def mean_batch_size(self) -> float:
        """Inputs of a batch."""
        return _share(self.total("elastic_batch_size_sum"), self.total("elastic_batch_size_count"))

    def submodels(self) -> list[Submodel]:
        """Every submodel that ever ran, by modality and in ascending quality."""
        qualities: dict[tuple[str, str], float] = {}
        for labels, value in _matching(self.later.values, "elastic_submodel_quality_ratio", {}):
            qualities[labels["modality"], labels["granularity"]] = value
        found = [
            Submodel(
                modality,
                granularity,
                quality,
                self.total("elastic_submodel_inputs_total", modality=modality, granularity=granularity),
            )
            for (modality, granularity), quality in qualities.items()
        ]
        return sorted(found, key=lambda item: (item.modality, item.quality))

    def _growths(self, name: str, labels: Mapping[str, str]) -> Iterable[tuple[dict[str, str], float]]:
        for own, value in _matching(self.later.values, name, labels):
            before = self._earlier.values.get((name, tuple(sorted(own.items()))), 0.0)
            # A counter that fell is that of a server started anew.
            yield own, value - before if value >= before else value


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """A quantile from cumulative counts by upper bound, as Prometheus' histogram_quantile takes it.

    Inside a bucket values are taken to lie evenly; above the last finite bound nothing is known but that bound.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return nan
    rank = share * buckets[bounds[-1]]
    lower, below = (0.0 if bounds[0] > 0 else bounds[0]), 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below) if isfinite(bound) else lower
        lower, below = (bound if bound < inf else lower), buckets[bound]
    return lower


def _matching(
    values: Mapping[Series, float], name: str, labels: Mapping[str, str]
) -> Iterable[tuple[dict[str, str], float]]:
    for (found, pairs), value in values.items():
        if found == name:
            own = dict(pairs)
            if labels.items() <= own.items():
                yield own, value


def _share(part: float, whole: float) -> float:
    return part / whole if whole else nan
