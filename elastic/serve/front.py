"""From the measured tables to what the policy chooses from: one front per modality."""

from elastic.profile.tables import LatencyTable, Modality, QualityTable, Quantile
from elastic.select import allowed, candidates, pareto_front
from elastic.serve.batching import Front, Level
from elastic.submodel import Slo, Space

NO_LIMIT = Slo(latency_ms=1e9)
"""An objective that everything meets: only the widths matter."""


def build_front(
    latency: LatencyTable,
    quality: QualityTable,
    space: Space,
    *,
    modality: Modality = "image",
    quantile: Quantile = "p90",
    max_batch_size: int | None = None,
) -> Front:
    """The measured submodels that none beats in both time and quality at full width, with every batch size's time.

    Quality is that of queries against an index of the largest evaluated submodel, as in `elastic.select`.
    `max_batch_size` is lowered to the largest measured one.

    Raises:
        ProfileError: the tables have no submodel in common, or batch size 1 was not measured.
    """
    # Pooled: the policy relies on costs that never fall as the submodel or the batch grows.
    smooth = latency.isotonic()
    found = candidates(smooth, quality, batch_size=1, modality=modality, quantile=quantile)
    front = pareto_front(allowed(found, NO_LIMIT))
    worth = {(candidate.submodel, candidate.embed_dim): candidate.quality for candidate in found}
    largest = max(latency.batch_sizes(modality))
    sizes = range(1, min(max_batch_size or largest, largest) + 1)
    levels = tuple(
        Level(
            submodel=point.submodel,
            name=space.name(point.submodel),
            batch_ms=tuple(smooth.predict(modality, point.submodel, size, quantile) for size in sizes),
            quality={width: value for (submodel, width), value in worth.items() if submodel == point.submodel},
        )
        for point in front
    )
    return Front(levels)
