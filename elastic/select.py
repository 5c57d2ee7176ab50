"""Mix'n'Match selection: the measured tables and a request's objective in, one submodel and width out.

A `Candidate` is a measured (submodel, embed_dim); the Pareto front keeps those that no other beats in both latency
and quality; `choose` takes the best of the front that meets the objective. The embedding width does not change
what the encoder costs (every width is a prefix of the same output), so it is decided by quality and by what the
request allows:

- no width asked: full width only, so that answers of different submodels fit one index;
- an exact width or a range: the allowed width of best quality, the wider one between equals.

Pure Python without torch or ray: the server calls it on its request path.
Source: MatFormer (arXiv 2310.07707) section 4.2 for Mix'n'Match; the measured-table form is INFaaS's (ATC 2021).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elastic.errors import ProfileError, SloInfeasible
from elastic.profile.tables import LatencyTable, Modality, QualityTable, Quantile, Task
from elastic.submodel import Choice, Slo, Submodel

TASK_OF: dict[Modality, Task] = {"image": "image_retrieval", "text": "text_to_image"}
"""The measured task that says what a query of each modality is worth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One thing that could be chosen, with what was measured for it."""

    submodel: Submodel
    embed_dim: int
    latency_ms: float
    """Predicted time of one encoder call at the batch size in question."""
    quality: float
    """Measured R@1, mean over domains, in [0, 1]."""

    def dominates(self, other: "Candidate") -> bool:
        """Whether this one is at least as good in both measures and better in one."""
        no_worse = self.latency_ms <= other.latency_ms and self.quality >= other.quality
        return no_worse and (self.latency_ms < other.latency_ms or self.quality > other.quality)


def candidates(
    latency: LatencyTable,
    quality: QualityTable,
    *,
    batch_size: int = 1,
    modality: Modality = "image",
    quantile: Quantile = "p90",
    index_submodel: Submodel | None = None,
) -> list[Candidate]:
    """Every (submodel, embed_dim) that both tables hold, for queries against one index.

    Args:
        latency: times of this device.
        quality: evaluated on the model that was profiled.
        batch_size: items per encoder call.
        modality: which tower runs.
        quantile: which measured time has to fit the objective.
        index_submodel: what embedded the index that is searched; by default the largest one evaluated, because
            an index is built once and offline while the submodel of a query is chosen per request.

    Raises:
        ProfileError: the tables have no submodel in common, or the batch size was not measured.
    """
    task = TASK_OF[modality]
    indexes = quality.index_submodels(task)
    if not indexes:
        raise ProfileError("quality", f"no {task} rows", "run `elastic evaluate` on data that has them")
    index = index_submodel or indexes[-1]
    found = [
        Candidate(
            submodel=submodel,
            embed_dim=embed_dim,
            latency_ms=latency.predict(modality, submodel, batch_size, quantile),
            quality=quality.row(submodel, index, embed_dim, task=task).recall_at_1,
        )
        for submodel in latency.submodels(modality)
        for embed_dim in quality.embed_dims(task)
        if quality.has(submodel, index, embed_dim, task)
    ]
    if not found:
        problem = f"no profiled {modality} submodel was evaluated as a query against index {index}"
        raise ProfileError("quality", problem, "run `elastic profile` and `elastic evaluate` on the same run")
    return found


def pareto_front(found: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that none dominates, one per (latency, quality): ascending in both.

    Between equals the widest embedding stands, then the larger submodel.
    """
    front: list[Candidate] = []
    order = sorted(found, key=lambda c: (c.latency_ms, -c.quality, -c.embed_dim, -sum(c.submodel.ffn_dims)))
    for candidate in order:
        if not front or candidate.quality > front[-1].quality:
            front.append(candidate)
    return front


def allowed(found: Sequence[Candidate], slo: Slo) -> list[Candidate]:
    """The candidates whose width the objective permits; only the widest when it names no width."""
    if slo.embed_dim is None and slo.min_embed_dim is None and slo.max_embed_dim is None:
        widest = max(candidate.embed_dim for candidate in found)
        return [candidate for candidate in found if candidate.embed_dim == widest]
    return [candidate for candidate in found if slo.allows(candidate.embed_dim)]


def choose(found: Sequence[Candidate], slo: Slo) -> Choice:
    """The best candidate that meets the objective: highest quality within `latency_ms`, from the Pareto front.

    Raises:
        SloInfeasible: none meets it; the error names the fastest, and what stood in the way.
    """
    front = pareto_front(allowed(found, slo))
    if not front:
        widths = ", ".join(str(width) for width in sorted({candidate.embed_dim for candidate in found}))
        raise SloInfeasible(_asked(slo), f"measured widths are {widths}", "ask for one of them, or a range with one")
    fitting = [candidate for candidate in front if candidate.latency_ms <= slo.latency_ms]
    if not fitting:
        best = f"the fastest, {_describe(front[0])}, needs {front[0].latency_ms:.2f} ms"
        raise SloInfeasible(_asked(slo), best, "raise latency_ms, or use a smaller batch or a faster device")
    chosen = fitting[-1]
    if slo.min_quality is not None and chosen.quality < slo.min_quality:
        raise SloInfeasible(
            _asked(slo), _quality_gap(front, chosen, slo.min_quality), "raise latency_ms or lower min_quality"
        )
    return Choice(
        submodel=chosen.submodel,
        embed_dim=chosen.embed_dim,
        predicted_ms=chosen.latency_ms,
        predicted_quality=chosen.quality,
        reason=_reason(front, chosen, slo),
    )


def select(
    latency: LatencyTable,
    quality: QualityTable,
    slo: Slo,
    *,
    batch_size: int = 1,
    modality: Modality = "image",
    quantile: Quantile = "p90",
    index_submodel: Submodel | None = None,
) -> Choice:
    """`choose` from the `candidates` of two tables; arguments and errors are theirs."""
    found = candidates(
        latency,
        quality,
        batch_size=batch_size,
        modality=modality,
        quantile=quantile,
        index_submodel=index_submodel,
    )
    return choose(found, slo)


def _asked(slo: Slo) -> str:
    parts = [f"latency_ms={slo.latency_ms:g}"]
    for name in ("min_quality", "embed_dim", "min_embed_dim", "max_embed_dim"):
        value = getattr(slo, name)
        if value is not None:
            parts.append(f"{name}={value:g}")
    return ", ".join(parts)


def _describe(candidate: Candidate) -> str:
    return f"{candidate.submodel} at embed_dim {candidate.embed_dim}"


def _quality_gap(front: Sequence[Candidate], chosen: Candidate, min_quality: float) -> str:
    """What the latency objective reaches, and the fastest that would reach the quality."""
    reached = f"the best within the time, {_describe(chosen)}, has quality {chosen.quality:.4f}"
    enough = next((candidate for candidate in front if candidate.quality >= min_quality), None)
    if enough is None:
        fastest = f"the fastest, {_describe(front[0])}, needs {front[0].latency_ms:.2f} ms"
        return f"{reached}, and no submodel has more than {front[-1].quality:.4f}; {fastest}"
    return f"{reached}; the fastest with enough, {_describe(enough)}, needs {enough.latency_ms:.2f} ms"


def _reason(front: Sequence[Candidate], chosen: Candidate, slo: Slo) -> str:
    why = f"highest quality within {slo.latency_ms:g} ms ({chosen.latency_ms:.2f} ms predicted)"
    better = [candidate for candidate in front if candidate.latency_ms > slo.latency_ms]
    if better:
        gain = better[0].quality - chosen.quality
        why += f"; the next better ({better[0].submodel}, +{gain:.4f}) needs {better[0].latency_ms:.2f} ms"
    else:
        why += "; nothing measured is better"
    if slo.embed_dim is not None:
        return f"{why}; width {chosen.embed_dim} as asked"
    if slo.min_embed_dim is None and slo.max_embed_dim is None:
        return f"{why}; full width, as width does not change the encoder's time"
    return f"{why}; best width in the range asked, as width does not change the encoder's time"
