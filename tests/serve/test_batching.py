import pytest

from elastic.errors import Overloaded
from elastic.serve.batching import Correction, Costs, EdfQueue, Front, Work
from elastic.submodel import Slo, Submodel

SUBMODEL = Submodel((16, 16))


def work(id: int, deadline_ms: float, **fields: object) -> Work:
    return Work(id=id, modality="image", deadline_ms=float(deadline_ms), budget_ms=100.0, **fields)  # type: ignore[arg-type]


def ids(works: tuple[Work, ...]) -> list[int]:
    return [work.id for work in works]


def test_the_earliest_deadline_comes_first_then_the_higher_priority_then_the_longer_wait() -> None:
    queue = EdfQueue(max_items=10)
    queue.add([work(1, 50), work(2, 20), work(3, 50, priority=5), work(4, 50)])
    assert ids(queue.view()) == [2, 3, 1, 4]


def test_a_full_queue_refuses_with_a_hint_and_keeps_what_it_holds() -> None:
    queue = EdfQueue(max_items=3)
    queue.add([work(1, 10), work(2, 10)])
    queue.check_room(1, retry_after_ms=7.0)
    with pytest.raises(Overloaded) as refused:
        queue.check_room(2, retry_after_ms=7.0)
    assert refused.value.retry_after_ms == 7.0
    assert len(queue) == 2


def test_cancelled_work_frees_its_place() -> None:
    queue = EdfQueue(max_items=2)
    first, second = work(1, 10), work(2, 20)
    queue.add([first, second])
    queue.remove([first])
    queue.check_room(1, retry_after_ms=1.0)
    queue.add([work(3, 5)])
    assert ids(queue.view()) == [3, 2]


def test_removing_absent_work_changes_nothing() -> None:
    queue = EdfQueue(max_items=2)
    queue.add([work(1, 10)])
    queue.remove([work(9, 10)])
    assert ids(queue.view()) == [1]


def test_work_expires_at_its_deadline_and_not_before() -> None:
    queue = EdfQueue(max_items=5)
    queue.add([work(1, 10), work(2, 20), work(3, 30)])
    assert ids(queue.expire(9.9)) == []
    assert ids(queue.expire(20.0)) == [1, 2]
    assert ids(queue.view()) == [3]


def test_an_unmeasured_submodel_is_not_corrected() -> None:
    assert Correction().factor("image", SUBMODEL, now_ms=5.0) == 1.0


def test_the_correction_follows_a_steady_slowdown() -> None:
    correction = Correction()
    for step in range(60):
        correction.observe("image", SUBMODEL, ratio=2.0, now_ms=float(step))
    assert correction.factor("image", SUBMODEL, now_ms=60.0) == pytest.approx(2.0, rel=0.01)


def test_the_correction_settles_above_the_mean_of_a_noisy_ratio() -> None:
    # Equal steps up and down would settle at the mean, 1.5. Where 0.3 * (2 - f) = 0.05 * (f - 1): f = 13 / 7.
    correction = Correction(half_life_ms=1e12)
    seen = []
    for step in range(400):
        correction.observe("image", SUBMODEL, ratio=1.0 if step % 2 else 2.0, now_ms=float(step))
        seen.append(correction.factor("image", SUBMODEL, now_ms=float(step)))
    assert sum(seen[-100:]) / 100 == pytest.approx(13 / 7, abs=0.05)


def test_one_stall_moves_the_correction_by_a_bounded_step() -> None:
    correction = Correction()
    correction.observe("image", SUBMODEL, ratio=1000.0, now_ms=0.0)
    assert correction.factor("image", SUBMODEL, now_ms=0.0) == pytest.approx(1.0 + 0.3 * 3.0)


def test_the_median_follows_what_lasts_and_hardly_what_stalls() -> None:
    stalled, slow = Correction(half_life_ms=1e12), Correction(half_life_ms=1e12)
    for step in range(100):
        stalled.observe("image", SUBMODEL, ratio=4.0 if step % 5 == 4 else 1.0, now_ms=float(step))
        slow.observe("image" if step % 2 else "text", SUBMODEL, ratio=1.4, now_ms=float(step))
    assert stalled.median(100.0) == pytest.approx(1.0, abs=2 * Correction.MEDIAN_STEP)
    assert stalled.factor("image", SUBMODEL, now_ms=100.0) > 1.5
    assert slow.median(100.0) == pytest.approx(1.4, abs=Correction.MEDIAN_STEP)


def test_the_median_is_clamped_and_fades() -> None:
    correction = Correction()
    for _ in range(500):
        correction.observe("image", SUBMODEL, ratio=100.0, now_ms=0.0)
    assert correction.median(0.0) == Correction.HIGHEST
    assert correction.median(Correction.MEDIAN_HALF_LIFE_MS) == pytest.approx((1 + Correction.HIGHEST) / 2)


def test_likely_costs_are_never_above_the_median(front: Front) -> None:
    costs = Costs({"image": front}, {"image": (1.0, 1.2, 1.5, 2.0)}, median=1.2)
    assert costs.likely().factors == {"image": (1.0, 1.2, 1.2, 1.2)}
    assert costs.slower(2.0).likely().factors == {"image": (2.0, 2.4, 2.4, 2.4)}


def test_the_correction_stays_inside_its_clamp() -> None:
    correction = Correction()
    for step in range(500):
        correction.observe("image", SUBMODEL, ratio=100.0, now_ms=float(step))
        correction.observe("text", SUBMODEL, ratio=0.001, now_ms=float(step))
    assert correction.factor("image", SUBMODEL, now_ms=500.0) <= Correction.HIGHEST
    assert correction.factor("text", SUBMODEL, now_ms=500.0) >= Correction.LOWEST


def test_what_has_not_run_is_expected_to_be_as_slow_as_the_machine_has_been() -> None:
    correction = Correction(half_life_ms=1e12)
    for step in range(60):
        correction.observe("image", SUBMODEL, ratio=2.0, now_ms=float(step))
    other = Submodel((9,))
    assert correction.factor("image", other, now_ms=60.0) == pytest.approx(2.0, rel=0.01)
    assert correction.factor("text", SUBMODEL, now_ms=60.0) == pytest.approx(2.0, rel=0.01)
    # Its own measurements count for more than the machine's as soon as there are some.
    for step in range(60, 180):
        correction.observe("image", other, ratio=1.0, now_ms=float(step))
    assert correction.factor("image", other, now_ms=180.0) == pytest.approx(1.0, rel=0.01)
    assert correction.factor("image", SUBMODEL, now_ms=180.0) == pytest.approx(2.0, rel=0.01)


def test_a_correction_that_is_not_renewed_returns_to_the_machines() -> None:
    correction = Correction(half_life_ms=100.0)
    for step in range(50):
        correction.observe("image", SUBMODEL, ratio=3.0, now_ms=float(step))
    for step in range(50, 2000):
        correction.observe("text", SUBMODEL, ratio=1.5, now_ms=float(step))
    assert correction.factor("image", SUBMODEL, now_ms=2000.0) == pytest.approx(1.5, rel=0.01)


def test_an_old_correction_fades_so_that_no_submodel_is_banished() -> None:
    correction = Correction(half_life_ms=100.0)
    for step in range(50):
        correction.observe("image", SUBMODEL, ratio=3.0, now_ms=float(step))
    excess = correction.factor("image", SUBMODEL, now_ms=49.0) - 1.0
    # After a half-life the machine's has half of it, and this one is halfway between: three quarters.
    assert correction.factor("image", SUBMODEL, now_ms=149.0) - 1.0 == pytest.approx(0.75 * excess, rel=0.01)
    assert correction.factor("image", SUBMODEL, now_ms=2049.0) == pytest.approx(1.0, abs=1e-4)


def test_fit_is_the_largest_batch_inside_the_time(costs: Costs) -> None:
    # M takes 8, 10, 12, ... ms.
    assert [costs.fit("image", 1, ms) for ms in (7.9, 8.0, 11.9, 12.0, 1000.0)] == [0, 1, 2, 3, 8]


def test_a_correction_scales_predictions_and_what_fits(front: Front) -> None:
    slow = Costs({"image": front}, {"image": (2.0, 2.0, 2.0, 2.0)})
    assert slow.ms("image", 0, 1) == 8.0
    assert slow.fit("image", 0, 8.0) == 1


def test_the_cheapest_level_of_a_floor_may_be_a_larger_submodel_after_corrections(front: Front) -> None:
    costs = Costs({"image": front}, {"image": (4.0, 1.0, 1.0, 1.0)})
    assert costs.cheapest["image"] == (1, 1, 2, 3)  # S now takes 16 ms, M 8


def test_the_floor_is_the_first_level_with_the_quality_at_the_allowed_width(front: Front) -> None:
    assert front.floor(Slo(latency_ms=1.0)) == 0
    assert front.floor(Slo(latency_ms=1.0, min_quality=0.5)) == 2
    assert front.floor(Slo(latency_ms=1.0, min_quality=0.5, embed_dim=32)) == 3
    assert front.floor(Slo(latency_ms=1.0, min_quality=0.7)) is None


def test_the_width_is_full_unless_asked_and_then_the_best_allowed(front: Front) -> None:
    level = front.levels[0]
    assert level.width(Slo(latency_ms=1.0)) == 64
    assert level.width(Slo(latency_ms=1.0, embed_dim=32)) == 32
    assert level.width(Slo(latency_ms=1.0, max_embed_dim=48)) == 32
    assert level.width(Slo(latency_ms=1.0, min_embed_dim=16)) == 64
