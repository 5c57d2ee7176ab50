"""From the measured tables to what the policy chooses from: one front per modality."""

from collections.abc import Mapping

from elastic.errors import ProfileError
from elastic.profile.tables import LatencyTable, Modality, QualityTable, Quantile
from elastic.select import TASK_OF, allowed, candidates, pareto_front
from elastic.serve.batching import Front, Level
from elastic.serve.config import ServeConfig
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


def build_fronts(
    latency: LatencyTable, quality: QualityTable, spaces: Mapping[Modality, Space], config: ServeConfig
) -> dict[Modality, Front]:
    """The fronts of every modality that was both profiled and evaluated.

    Raises:
        ProfileError: no modality was, or nothing was profiled with the configured dtype and thread count.
    """
    measured = latency.where(dtype=config.dtype, num_threads=config.num_threads)
    if not measured.rows:
        problem = f"not measured with dtype {config.dtype} and {config.num_threads} thread(s)"
        advice = f"run `elastic profile --dtype {config.dtype} --num-threads {config.num_threads}`"
        raise ProfileError("latency", problem, advice)
    fronts: dict[Modality, Front] = {
        modality: build_front(
            measured,
            quality,
            space,
            modality=modality,
            quantile=config.quantile,
            max_batch_size=config.max_batch_size,
        )
        for modality, space in spaces.items()
        if measured.submodels(modality) and quality.query_submodels(TASK_OF[modality])
    }
    if not fronts:
        raise ProfileError("quality", "no modality was both profiled and evaluated", "run `elastic evaluate`")
    return fronts
