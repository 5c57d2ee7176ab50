"""The scaler against a fluid model of a fleet: work flows in, and is degraded and refused as a replica would."""

import itertools
import random
from collections.abc import Callable

import pytest

from elastic.errors import ConfigError
from elastic.serve.scaling.load import Load
from elastic.serve.scaling.scaler import DeficitScaler, FleetSize, ScalingRules, ScalingState

START_S = 6.0


def load_of(
    running: int,
    work: float,
    *,
    limit: float = 0.85,
    shrinks: float = 2.5,
    window_s: float = 10.0,
    noise: Callable[[], float] = lambda: 1.0,
) -> Load:
    """What a fleet reports when `work` replicas' worth of full-quality requests come in.

    A replica answers at full quality up to `limit`, at half the quality once models are `shrinks` times faster, and
    refuses what is above that.
    """
    span_ms, requests = 1000 * window_s * running, 100.0 * work
    if running == 0:
        return Load(waiting=float(work > 0))
    each = work * noise() / running
    degraded = min(1.0, max(0.0, each / limit - 1) / (shrinks - 1))
    missed = max(0.0, 1 - limit * shrinks / each) if each else 0.0
    busy_ms = span_ms * min(1.0, each)
    return Load(
        span_ms=span_ms,
        window_ms=1000 * window_s,
        requests=requests,
        missed=requests * missed,
        best=requests * 0.6,
        lost=requests * 0.6 * 0.5 * degraded,
        full_ms=span_ms * each,
        table_ms=busy_ms,
        busy_ms=busy_ms,
        waiting=float(work > 0),
    )


def run(
    rules: ScalingRules, work: Callable[[float], float], seconds: float, **world: object
) -> list[tuple[float, int]]:
    """Replicas wanted, second by second; new ones take `START_S` to come up, old ones leave at once."""
    scaler, state, target = DeficitScaler(rules), ScalingState(), max(1, rules.min_replicas)
    ups: list[float] = []  # when replicas that start will run
    running, wanted = target, []
    for now_s in map(float, range(int(seconds))):
        running += sum(at_s <= now_s for at_s in ups)
        ups = [at_s for at_s in ups if at_s > now_s]
        load = load_of(running, work(now_s), **world)  # type: ignore[arg-type]
        decision = scaler.decide(load, FleetSize(running, target), state, now_s)
        state, new = decision.state, decision.wanted
        ups += [now_s + START_S] * max(0, new - running - len(ups))
        ups = ups[: max(0, new - running)]
        running, target = min(running, new), new
        wanted.append((now_s, new))
    return wanted


def replicas(series: list[tuple[float, int]]) -> list[int]:
    return [count for _, count in series]


def turns(series: list[tuple[float, int]]) -> int:
    """Changes of direction."""
    steps = [later - sooner for sooner, later in itertools.pairwise(replicas(series)) if later != sooner]
    return sum((one > 0) != (other > 0) for one, other in itertools.pairwise(steps))


RULES = ScalingRules(max_replicas=20)


def test_a_quiet_server_keeps_its_size():
    assert set(replicas(run(RULES, lambda s: 0.3, 600))) == {1}


def test_refusals_make_the_fleet_grow_in_one_step_to_what_the_work_needs():
    series = replicas(run(RULES, lambda s: 7.0, 20))
    assert sorted(set(series)) == [1, 10]  # 7 / 0.7


def test_degraded_answers_alone_make_it_grow():
    """At 1.4 replicas' worth of work one replica meets everything with small submodels; for ever, if none looked."""
    assert load_of(1, 1.4).attainment == 1.0
    assert replicas(run(RULES, lambda s: 1.4, 30))[-1] == 2


def test_it_waits_before_it_grows():
    series = replicas(run(RULES, lambda s: 7.0, 20))
    assert series[: int(RULES.up_after_s)] == [1, 1]


def test_replicas_that_start_are_not_asked_for_again():
    assert max(replicas(run(RULES, lambda s: 3.0, 100))) == 5


def test_it_returns_to_the_least_when_the_load_is_gone():
    series = run(RULES, lambda s: 7.0 if s < 100 else 0.0, 600)
    assert replicas(series)[-1] == 1
    assert turns(series) == 1


def test_it_shrinks_only_after_the_hold_time():
    series = replicas(run(RULES, lambda s: 7.0 if s < 100 else 0.1, 400))
    first = next(second for second in range(100, 400) if series[second] < 10)
    assert RULES.down_after_s <= first - 100 <= RULES.down_after_s * 7 / 6


def test_a_short_lull_costs_no_replica():
    series = run(RULES, lambda s: 0.5 if 200 <= s < 240 else 7.0, 600)
    assert turns(series) == 0


def test_it_shrinks_to_the_most_that_the_hold_time_needed():
    series = replicas(run(RULES, lambda s: 7.0 if s < 100 else 2.0 if s < 140 else 1.0, 300))
    assert [number for number, _ in itertools.groupby(series)] == [1, 10, 5, 3]  # 7 / 0.7; 2 and 1 over 0.7 * 0.7


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("work", [0.6, 0.9, 1.5, 11.0])
def test_it_does_not_flap_under_a_steady_load_with_noise(work: float, seed: int):
    noise = random.Random(seed)
    series = run(RULES, lambda s: work, 900, noise=lambda: noise.uniform(0.9, 1.1))
    assert turns(series) <= 1


@pytest.mark.parametrize("limit", [0.3, 0.5])
def test_it_learns_when_replicas_can_do_less_than_the_table_says(limit: float):
    """At 2 of work 0.7 usable asks for 3 replicas, which are still too few."""
    series = run(RULES, lambda s: 2.0, 900, limit=limit)
    assert 2.0 / limit <= replicas(series)[-1] <= 2.0 / limit * 1.5
    assert turns(series) == 0


def test_what_it_learned_fades():
    """Once capacity is what the table says again, the fleet comes back to what the table asks for."""
    scaler = DeficitScaler(RULES)
    state = ScalingState(usable=0.3, learned_s=0.0)
    assert scaler.usable(state, 0.0) == pytest.approx(0.3)
    assert scaler.usable(state, RULES.forget_s) == pytest.approx(0.5)
    assert scaler.usable(state, 1e6) == pytest.approx(0.7)


def test_lost_quality_at_idle_replicas_is_not_put_down_to_load():
    load = load_of(4, 0.2)
    lost = Load(**{**_fields(load), "lost": load.best / 2, "missed": load.requests})
    decision = DeficitScaler(RULES).decide(lost, FleetSize(4, 4), ScalingState(pressed_s=0.0), 100.0)
    assert decision.wanted == 4


def test_a_few_misses_are_chance():
    load = load_of(1, 0.6)
    for missed, wanted in ((2, 1), (30, 2)):
        few = Load(**{**_fields(load), "missed": missed})
        state = ScalingState(size=FleetSize(1, 1), changed_s=0.0, pressed_s=90.0)
        assert DeficitScaler(RULES).decide(few, FleetSize(1, 1), state, 100.0).wanted == wanted


def test_without_any_report_nothing_changes():
    assert DeficitScaler(RULES).decide(Load(), FleetSize(3, 4), ScalingState(), 1e6).wanted == 4


def test_the_limits_hold():
    rules = ScalingRules(min_replicas=2, max_replicas=4)
    series = replicas(run(rules, lambda s: 50.0 if s < 100 else 0.0, 600))
    assert (min(series), max(series), series[-1]) == (2, 4, 2)


def test_an_idle_server_stops_its_last_replica_and_the_first_request_starts_one():
    rules = ScalingRules(min_replicas=0, max_replicas=4, zero_after_s=120)
    series = replicas(run(rules, lambda s: 0.3 if s < 60 or s >= 400 else 0.0, 600))
    assert series[179] == 1 and series[180] == 0 == series[399]
    assert series[400:] == [1] * 200


def test_the_last_replica_stays_unless_it_may_stop():
    assert replicas(run(ScalingRules(max_replicas=4), lambda s: 0.0, 2000))[-1] == 1


def test_a_replica_that_serves_a_little_does_not_stop():
    rules = ScalingRules(min_replicas=0, max_replicas=4, zero_after_s=120)
    assert 0 not in replicas(run(rules, lambda s: 0.001, 1000))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_replicas": 3, "max_replicas": 2},
        {"max_replicas": 0, "min_replicas": 0},
        {"min_replicas": -1},
        {"usable": 0.0},
        {"headroom": 1.1},
        {"target_attainment": 0.0},
        {"window_s": 0.0},
    ],
)
def test_rules_outside_their_range_are_refused(wrong: dict):
    with pytest.raises(ConfigError):
        ScalingRules(**wrong)


def _fields(load: Load) -> dict[str, float]:
    return {name: getattr(load, name) for name in Load.__slots__}
