import random
from dataclasses import dataclass, field, replace

import pytest

from elastic.errors import Overloaded
from elastic.serve.batching import Costs, EdfQueue, Work
from elastic.serve.policies.lookahead import LookaheadPolicy, Outlook
from elastic.serve.policy import Limit, Refuse, Run


def policy() -> LookaheadPolicy:
    """One that takes predictions as they are."""
    return LookaheadPolicy(headroom=1.0)


def work(id: int, deadline_ms: float, **fields: object) -> Work:
    return Work(id=id, modality=fields.pop("modality", "image"), deadline_ms=deadline_ms, budget_ms=0.0, **fields)  # type: ignore[arg-type]


def decide(costs: Costs, *works: Work, now_ms: float = 0.0) -> Run | Refuse:
    return policy().decide(sorted(works, key=lambda w: w.urgency), now_ms, costs)


def run(costs: Costs, *works: Work) -> Run:
    decision = decide(costs, *works)
    assert isinstance(decision, Run)
    return decision


@pytest.mark.parametrize(
    ("deadline_ms", "level", "limit"),
    [(4.0, 0, Limit.DEADLINE), (8.0, 1, Limit.DEADLINE), (19.9, 2, Limit.DEADLINE), (20.0, 3, Limit.NONE)],
)
def test_one_request_gets_the_most_accurate_submodel_inside_its_deadline(
    costs: Costs, deadline_ms: float, level: int, limit: Limit
) -> None:
    decision = run(costs, work(1, deadline_ms))
    assert (decision.level, decision.limit) == (level, limit)
    assert decision.predicted_ms <= deadline_ms


def test_requests_without_hurry_share_one_batch_at_the_largest_submodel(costs: Costs) -> None:
    decision = run(costs, *(work(i, 1000.0) for i in range(5)))
    assert (decision.level, len(decision.works)) == (3, 5)


def test_a_backlog_gets_smaller_submodels_in_larger_batches(costs: Costs) -> None:
    # 32 inputs due at 70 ms: four batches of 8. XL takes 76 ms per batch, L 40, M 22, S 11.
    quiet = run(costs, work(0, 70.0))
    backlog = run(costs, *(work(i, 70.0) for i in range(32)))
    assert (quiet.level, len(quiet.works)) == (3, 1)
    assert backlog.level < 3
    assert len(backlog.works) == 8


def test_a_tight_head_does_not_drag_patient_requests_down_with_it(costs: Costs) -> None:
    decision = run(costs, work(0, 4.0), *(work(i, 1000.0) for i in range(1, 6)))
    assert (decision.level, [w.id for w in decision.works]) == (0, [0])


def test_patience_is_not_spent_on_the_hurry_of_the_head(costs: Costs) -> None:
    # All six fit into 30 ms at M; alone, each can have XL.
    head = replace(work(0, 30.0), budget_ms=30.0)
    patient = [replace(work(i, 1000.0), budget_ms=1000.0) for i in range(1, 6)]
    decision = run(costs, head, *patient)
    assert (decision.level, [w.id for w in decision.works]) == (3, [0])
    hurried = [replace(one, budget_ms=40.0, deadline_ms=31.0) for one in patient]
    assert len(run(costs, head, *hurried).works) == 6


def test_the_largest_batch_that_leaves_the_rest_on_time_is_run(costs: Costs) -> None:
    images = [work(i, 1000.0) for i in range(8)]
    # The text can wait for four images at the fastest submodel, but not for eight.
    due_ms = costs.ms("image", 0, 4) + costs.ms("text", 0, 1) + 0.1
    assert due_ms < costs.ms("image", 0, 8) + costs.ms("text", 0, 1)
    first = replace(images[0], deadline_ms=due_ms - 0.05)
    decision = run(costs, first, *images[1:], work(99, due_ms, modality="text"))
    assert [w.id for w in decision.works] == [0, 1, 2, 3]


def test_images_and_texts_are_never_mixed(costs: Costs) -> None:
    decision = run(costs, *(work(i, 100.0 + i, modality="text" if i % 2 else "image") for i in range(8)))
    assert {w.modality for w in decision.works} == {"image"}


def test_the_quality_floor_holds_for_the_whole_batch(costs: Costs) -> None:
    decision = run(costs, work(0, 30.0), work(1, 30.0, floor=2))
    members = [w.floor for w in decision.works]
    assert decision.level >= max(members)


def test_what_cannot_be_met_any_more_is_refused_and_not_computed(costs: Costs) -> None:
    decision = decide(costs, work(0, 3.9), work(1, 100.0), work(2, 11.9, floor=2))
    assert isinstance(decision, Refuse)
    assert [w.id for w in decision.works] == [0, 2]


def test_a_head_that_can_be_met_runs_even_when_a_later_request_is_lost(costs: Costs) -> None:
    # Three floors of XL due at 45 ms: 20 ms each, and not 36 ms for three together after the first.
    works = [work(i, 21.0 + i, floor=3) for i in range(3)]
    decision = run(costs, *works)
    assert decision.works[0].id == 0
    assert decision.predicted_ms <= 21.0


def test_admission_refuses_what_would_be_late_at_the_fastest_submodel(costs: Costs) -> None:
    queue = [work(i, 11.0) for i in range(8)]  # exactly one batch of 8 at S: 11 ms
    policy().admit([], queue, 0.0, costs)
    with pytest.raises(Overloaded) as refused:
        policy().admit(queue, [work(9, 14.0, arrived_ms=0.0)], 0.0, costs)
    assert refused.value.retry_after_ms == pytest.approx(11.0)


def test_admission_refuses_what_would_push_an_admitted_request_over_its_deadline(costs: Costs) -> None:
    queue = [work(1, 7.9, modality="text")]
    with pytest.raises(Overloaded):
        policy().admit(queue, [work(2, 7.0)], 0.0, costs)


def test_admission_counts_the_batch_that_runs_now(costs: Costs) -> None:
    policy().admit([], [work(1, 10.0)], 6.0, costs)
    with pytest.raises(Overloaded):
        policy().admit([], [work(1, 10.0)], 6.1, costs)


@dataclass
class Simulation:
    """A model thread that takes exactly the predicted time, with arrivals at random."""

    costs: Costs
    random: random.Random
    queue: EdfQueue = field(default_factory=lambda: EdfQueue(max_items=200))
    met: int = 0
    refused: int = 0
    lost: list[Work] = field(default_factory=list)

    def serve(self, num_arrivals: int) -> None:
        arrivals = self.arrivals(num_arrivals)
        now_ms = 0.0
        while arrivals or len(self.queue):
            if not len(self.queue):
                now_ms = max(now_ms, arrivals[0][0].arrived_ms)
            while arrivals and arrivals[0][0].arrived_ms <= now_ms:
                self.admit(arrivals.pop(0), free_ms=now_ms)
            self.lost += self.queue.expire(now_ms)
            if len(self.queue):
                now_ms = self.step(now_ms, arrivals)

    def step(self, now_ms: float, arrivals: list[list[Work]]) -> float:
        decision = policy().decide(self.queue.view(), now_ms, self.costs)
        self.queue.remove(decision.works)
        if isinstance(decision, Refuse):
            self.lost += decision.works
            return now_ms
        assert all(decision.level >= w.floor for w in decision.works)
        assert all(w.deadline_ms > now_ms for w in decision.works)
        assert len({w.modality for w in decision.works}) == 1
        end_ms = now_ms + decision.predicted_ms
        while arrivals and arrivals[0][0].arrived_ms <= end_ms:  # they arrive while the thread is busy
            self.admit(arrivals.pop(0), free_ms=end_ms)
        self.met += sum(w.deadline_ms >= end_ms for w in decision.works)
        self.lost += [w for w in decision.works if w.deadline_ms < end_ms]
        return end_ms

    def admit(self, request: list[Work], free_ms: float) -> None:
        try:
            policy().admit(self.queue.view(), request, free_ms, self.costs)
        except Overloaded:
            self.refused += len(request)
        else:
            self.queue.add(request)

    def arrivals(self, count: int) -> list[list[Work]]:
        requests, now_ms, id = [], 0.0, 0
        for _ in range(count):
            now_ms += self.random.expovariate(1 / 12.0)
            items, budget_ms = self.random.choice([1, 1, 1, 2, 5, 12]), self.random.choice([6.0, 20.0, 60.0, 200.0])
            shared = {"floor": self.random.choice([0, 0, 0, 1, 3]), "modality": self.random.choice(["image", "text"])}
            requests.append([work(id + i, now_ms + budget_ms, arrived_ms=now_ms, **shared) for i in range(items)])
            id += items
        return requests


@pytest.mark.parametrize("seed", range(6))
def test_every_admitted_request_is_met_when_predictions_hold(costs: Costs, seed: int) -> None:
    simulation = Simulation(costs, random.Random(seed))
    simulation.serve(num_arrivals=150)
    assert simulation.lost == []
    assert simulation.met > 100
    assert simulation.refused > 0  # the load is high enough for the promise to mean something


def test_decisions_repeat(costs: Costs) -> None:
    works = [work(i, 30.0 + 7 * (i % 5), floor=i % 3) for i in range(20)]
    assert decide(costs, *works) == decide(costs, *works)


def busy(rate: float, budget_ms: float) -> LookaheadPolicy:
    """Has seen arrivals at this rate for two seconds, up to time 0."""
    policy = LookaheadPolicy(headroom=1.0)
    gap_ms = 1.0 / rate
    times = [-gap_ms * number for number in range(int(2000.0 * rate), -1, -1)]
    policy.notice([work(0, at_ms + budget_ms, arrived_ms=at_ms) for at_ms in times])
    return policy


def level_under(costs: Costs, rate: float) -> int:
    decision = busy(rate, 60.0).decide([work(1, 60.0)], 0.0, costs)
    assert isinstance(decision, Run)
    return decision.level


def test_accuracy_is_given_up_as_far_as_the_rate_of_arrivals_asks(costs: Costs) -> None:
    levels = [level_under(costs, rate) for rate in (0.01, 0.1, 0.3, 1.0, 2.0)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == 3 > levels[-1]


def test_a_batch_that_expected_arrivals_hold_back_says_so(costs: Costs) -> None:
    decision = busy(2.0, 60.0).decide([work(1, 60.0)], 0.0, costs)
    assert isinstance(decision, Run) and decision.limit is Limit.BACKLOG


def test_an_outlook_is_between_two_levels_in_a_straight_line(costs: Costs) -> None:
    # One input: S 4 ms, M 8 ms; S is worth 0.3, M 0.4.
    outlook = Outlook(costs, "image", 0.0, float("inf"))
    assert [outlook.quality(1.0, left_ms) for left_ms in (4.0, 6.0, 8.0, 1000.0)] == pytest.approx(
        [0.3, 0.35, 0.4, 0.6]
    )


def test_an_outlook_counts_what_cannot_be_done_as_nothing(costs: Costs) -> None:
    outlook = Outlook(costs, "image", 0.0, float("inf"))
    assert outlook.quality(8.0, 11.0) == pytest.approx(0.3)
    assert outlook.quality(16.0, 11.0) == pytest.approx(0.15)
    assert outlook.quality(1.0, -1.0) == 0.0


def test_an_outlook_promises_nothing_that_cannot_go_on(costs: Costs) -> None:
    # At 0.2 inputs a millisecond and 60 ms, batches of 6 have 30 ms: S takes 9, M 18, L 32 ms.
    outlook = Outlook(costs, "image", 0.2, 60.0)
    steady = 0.4 + 0.1 * (30 - 18) / (32 - 18)
    assert outlook.quality(1.0, 1000.0) == pytest.approx(steady)


def test_broken_promises_make_it_more_careful_and_kept_ones_less(costs: Costs) -> None:
    learning = LookaheadPolicy()
    late, early = (Run(0, (work(id, 10.0),), 5.0, Limit.NONE) for id in range(2))
    learning.observe(late, finished_ms=10.5)
    after_late = learning.headroom(10.5)
    learning.observe(early, finished_ms=9.5)
    assert 1.15 < learning.headroom(10.5) < after_late
    doomed = learning.decide([work(2, 10.0)], 20.0, costs)
    assert isinstance(doomed, Refuse)
    assert learning.headroom(20.0) > after_late


def test_what_finds_nobody_waiting_is_tried_if_it_is_more_likely_in_time_than_not(costs: Costs) -> None:
    # A stall has made S take 8 ms instead of 4 for all that is known of it, but every second batch takes 4.
    stalled = Costs({"image": costs.fronts["image"]}, {"image": (2.0,) * 4}, median=1.0)
    together = [work(1, 6.0), work(2, 6.0)]  # of one request: they arrived at the same time
    for alone in (together[:1], together):
        policy().admit([], alone, 0.0, stalled)
        decision = policy().decide(alone, 0.0, stalled)
        assert isinstance(decision, Run) and (decision.level, decision.works) == (0, tuple(alone))
        assert decision.predicted_ms == costs.ms("image", 0, len(alone))
    # Beside others it would be their risk, too; and what is slow every time is not likely.
    with pytest.raises(Overloaded):
        policy().admit([work(3, 50.0)], together[:1], 0.0, stalled)
    assert isinstance(policy().decide([*together[:1], work(3, 50.0, arrived_ms=-1.0)], 0.0, stalled), Refuse)
    slow = Costs({"image": costs.fronts["image"]}, {"image": (2.0,) * 4}, median=2.0)
    with pytest.raises(Overloaded):
        policy().admit([], together[:1], 0.0, slow)
    assert isinstance(policy().decide(together[:1], 0.0, slow), Refuse)


def test_what_finds_nobody_waiting_is_tried_without_headroom(costs: Costs) -> None:
    # S takes 4 ms; with three tenths of headroom 5 ms are not enough.
    careful = LookaheadPolicy(headroom=1.3)
    careful.admit([], [work(1, 5.0)], 0.0, costs)
    decision = careful.decide([work(1, 5.0)], 0.0, costs)
    assert isinstance(decision, Run) and (decision.level, decision.limit) == (0, Limit.DEADLINE)
    with pytest.raises(Overloaded):
        careful.admit([], [work(1, 3.9)], 0.0, costs)
    with pytest.raises(Overloaded):
        careful.admit([work(1, 50.0)], [work(2, 5.0)], 0.0, costs)
    policy().admit([work(1, 50.0)], [work(2, 5.0)], 0.0, costs)
