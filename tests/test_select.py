import random
import subprocess
import sys

import pytest

from elastic.errors import ProfileError, SloInfeasible
from elastic.profile.provenance import Device, Provenance
from elastic.profile.tables import LatencyRow, LatencyTable, QualityRow, QualityTable
from elastic.select import Candidate, allowed, candidates, choose, pareto_front, select
from elastic.submodel import Slo, Space, Submodel

SPACE = Space(depth=3, ffn_dims=(8, 16, 32), embed_dims=(4, 8))
PROVENANCE = Provenance(device=Device("CPU A", 2, "AVX2"), commit="abc", command="")


def candidate(ffn_dim, latency_ms, quality, embed_dim=8):
    return Candidate(submodel=SPACE.uniform(ffn_dim), embed_dim=embed_dim, latency_ms=latency_ms, quality=quality)


def random_candidates(rng):
    """Candidates on a coarse grid, so that ties in either measure are common."""
    return [
        Candidate(
            submodel=submodel, embed_dim=embed_dim, latency_ms=float(rng.randint(1, 8)), quality=rng.randint(0, 10) / 10
        )
        for submodel in SPACE.mixes()
        for embed_dim in SPACE.embed_dims
    ]


def random_slo(rng):
    width = rng.choice([{}, {}, {"embed_dim": rng.choice([4, 8])}, {"min_embed_dim": 5}, {"max_embed_dim": 8}])
    return Slo(latency_ms=float(rng.randint(1, 9)), min_quality=rng.choice([None, 0.3, 0.8]), **width)


def tables(latencies_ms, qualities, *, index=None, embed_dims=(4, 8)):
    """A latency and a quality table over the uniform submodels of `SPACE`, ascending; batch 1 and 4."""
    submodels = [SPACE.uniform(dim) for dim in SPACE.ffn_dims]
    latency = [
        LatencyRow(
            device="CPU A",
            dtype="float32",
            num_threads=1,
            modality="image",
            submodel=submodel,
            batch_size=batch,
            n=9,
            mean_ms=ms,
            p50_ms=ms,
            p90_ms=ms * batch,
            p99_ms=ms * batch * 2,
            min_ms=ms,
            max_ms=ms,
        )
        for submodel, ms in zip(submodels, latencies_ms, strict=True)
        for batch in (1, 4)
    ]
    quality = [
        QualityRow(
            task="image_retrieval", query_submodel=submodel, index_submodel=index or submodels[-1],
            embed_dim=embed_dim, domain="mean", recall_at_1=q * embed_dim / 8, mmp_at_5=0.0, num_queries=9,
        )
        for submodel, q in zip(submodels, qualities, strict=True)
        for embed_dim in embed_dims
    ]  # fmt: skip
    return LatencyTable(latency, PROVENANCE), QualityTable(quality, PROVENANCE)


@pytest.mark.parametrize("seed", range(50))
def test_the_choice_never_violates_the_objective_and_is_never_dominated(seed):
    rng = random.Random(seed)
    found, slo = random_candidates(rng), random_slo(rng)
    try:
        choice = choose(found, slo)
    except SloInfeasible:
        feasible = [c for c in allowed(found, slo) if c.latency_ms <= slo.latency_ms]
        assert not [c for c in feasible if c.quality >= (slo.min_quality or 0)]
        return
    assert choice.predicted_ms <= slo.latency_ms
    assert choice.predicted_quality >= (slo.min_quality or 0)
    assert slo.allows(choice.embed_dim)
    chosen = Candidate(
        submodel=choice.submodel,
        embed_dim=choice.embed_dim,
        latency_ms=choice.predicted_ms,
        quality=choice.predicted_quality,
    )
    assert chosen in found
    assert not [c for c in allowed(found, slo) if c.dominates(chosen)]


@pytest.mark.parametrize("seed", range(50))
def test_the_front_holds_exactly_the_undominated_measurements(seed):
    found = random_candidates(random.Random(seed))
    front = pareto_front(found)
    undominated = {(c.latency_ms, c.quality) for c in found if not any(o.dominates(c) for o in found)}
    assert {(c.latency_ms, c.quality) for c in front} == undominated
    assert len(front) == len(undominated)
    assert [c.latency_ms for c in front] == sorted(c.latency_ms for c in front)
    assert [c.quality for c in front] == sorted(c.quality for c in front)


def test_the_best_submodel_within_the_latency_is_chosen_and_the_reason_names_the_next():
    found = [candidate(8, 2.0, 0.5), candidate(16, 4.0, 0.6), candidate(32, 9.0, 0.7)]
    choice = choose(found, Slo(latency_ms=5.0))
    assert choice.submodel == SPACE.uniform(16)
    assert "highest quality within 5 ms (4.00 ms predicted)" in choice.reason
    assert "+0.1000) needs 9.00 ms" in choice.reason


def test_a_slower_and_worse_submodel_is_never_chosen():
    found = [candidate(8, 2.0, 0.5), candidate(16, 4.0, 0.4)]
    assert choose(found, Slo(latency_ms=100.0)).submodel == SPACE.uniform(8)


def test_full_width_is_kept_when_no_width_is_asked_even_if_a_smaller_one_measured_better():
    found = [candidate(8, 2.0, 0.5, embed_dim=8), candidate(8, 2.0, 0.6, embed_dim=4)]
    choice = choose(found, Slo(latency_ms=5.0))
    assert choice.embed_dim == 8
    assert "full width" in choice.reason


def test_between_allowed_widths_the_better_one_is_chosen_and_the_wider_one_between_equals():
    better_small = [candidate(8, 2.0, 0.5, embed_dim=8), candidate(8, 2.0, 0.6, embed_dim=4)]
    assert choose(better_small, Slo(latency_ms=5.0, max_embed_dim=8)).embed_dim == 4
    equal = [candidate(8, 2.0, 0.5, embed_dim=4), candidate(8, 2.0, 0.5, embed_dim=8)]
    assert choose(equal, Slo(latency_ms=5.0, min_embed_dim=4)).embed_dim == 8


def test_an_exact_width_is_honoured():
    found = [candidate(8, 2.0, 0.5, embed_dim=8), candidate(8, 2.0, 0.3, embed_dim=4)]
    choice = choose(found, Slo(latency_ms=5.0, embed_dim=4))
    assert (choice.embed_dim, choice.predicted_quality) == (4, 0.3)
    assert "width 4 as asked" in choice.reason


def test_an_impossible_latency_names_the_fastest_submodel():
    found = [candidate(8, 2.0, 0.5), candidate(16, 4.0, 0.6)]
    with pytest.raises(SloInfeasible, match=r"latency_ms=1: the fastest, ffn=8x3 at embed_dim 8, needs 2.00 ms"):
        choose(found, Slo(latency_ms=1.0))


def test_a_quality_out_of_reach_in_time_names_the_fastest_that_has_it():
    found = [candidate(8, 2.0, 0.5), candidate(16, 4.0, 0.6), candidate(32, 9.0, 0.7)]
    with pytest.raises(SloInfeasible, match=r"has quality 0.5000; the fastest with enough, ffn=16x3 .* needs 4.00 ms"):
        choose(found, Slo(latency_ms=3.0, min_quality=0.55))


def test_a_quality_that_nothing_reaches_says_so():
    with pytest.raises(SloInfeasible, match=r"no submodel has more than 0\.5000; the fastest"):
        choose([candidate(8, 2.0, 0.5)], Slo(latency_ms=3.0, min_quality=0.9))


def test_an_unmeasured_width_lists_the_measured_ones():
    with pytest.raises(SloInfeasible, match="measured widths are 4, 8"):
        choose([candidate(8, 2.0, 0.5), candidate(8, 2.0, 0.4, embed_dim=4)], Slo(latency_ms=3.0, embed_dim=5))


def test_the_batch_size_and_the_quantile_decide_what_fits():
    latency, quality = tables([1.0, 2.0, 4.0], [0.5, 0.6, 0.7])
    slo = Slo(latency_ms=4.0)
    assert select(latency, quality, slo).submodel == SPACE.uniform(32)
    assert select(latency, quality, slo, batch_size=4).submodel == SPACE.uniform(8)
    assert select(latency, quality, slo, quantile="p99").submodel == SPACE.uniform(16)


def test_quality_counts_against_the_index_that_is_searched():
    latency, quality = tables([1.0, 2.0, 4.0], [0.5, 0.6, 0.7])
    assert [c.quality for c in candidates(latency, quality) if c.embed_dim == 8] == [0.5, 0.6, 0.7]
    with pytest.raises(ProfileError, match="against index ffn=8x3"):
        candidates(latency, quality, index_submodel=SPACE.smallest)


def test_a_submodel_that_was_not_evaluated_is_no_candidate():
    latency, quality = tables([1.0, 2.0, 4.0], [0.5, 0.6, 0.7])
    known = QualityTable([row for row in quality.rows if row.query_submodel != SPACE.uniform(16)], PROVENANCE)
    assert {c.submodel for c in candidates(latency, known)} == {SPACE.uniform(8), SPACE.uniform(32)}


def test_a_modality_without_rows_is_an_error():
    latency, quality = tables([1.0, 2.0, 4.0], [0.5, 0.6, 0.7])
    with pytest.raises(ProfileError, match="no text_to_image rows"):
        candidates(latency, quality, modality="text")


def test_text_queries_are_valued_by_text_to_image_retrieval():
    latency, quality = tables([1.0, 2.0, 4.0], [0.5, 0.6, 0.7])
    text, image = Submodel((6,)), SPACE.full
    row = latency.rows[0]
    fields = {name: getattr(row, name) for name in row.__slots__} | {"modality": "text", "submodel": text}
    measured = LatencyTable([*latency.rows, LatencyRow(**fields)], PROVENANCE)
    caption = QualityRow(
        task="text_to_image", query_submodel=text, index_submodel=image, embed_dim=8, domain="mean",
        recall_at_1=0.25, mmp_at_5=0.0, num_queries=3,
    )  # fmt: skip
    evaluated = QualityTable([*quality.rows, caption], PROVENANCE)
    choice = select(measured, evaluated, Slo(latency_ms=5.0), modality="text")
    assert (choice.submodel, choice.predicted_quality) == (text, 0.25)


def test_selection_imports_neither_torch_nor_ray():
    code = "import sys, elastic.select; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
