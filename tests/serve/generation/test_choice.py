from math import inf

import pytest

from elastic.errors import InvalidRequest, Overloaded, SloInfeasible
from elastic.serve.generation.choice import (
    MEMORY_STEPS,
    MEMORY_TOKENS,
    Choice,
    Option,
    Share,
    TokenSlo,
    TokenTimes,
    choose,
)
from elastic.serve.policy import Limit
from elastic.submodel import Submodel

S, M, L, XL = (Submodel((dim, dim)) for dim in (8, 16, 32, 64))
OPTIONS = [
    Option(S, "S", 4.0, 10.0),
    Option(M, "M", 3.5, 20.0),
    Option(L, "L", 3.2, 40.0),
    Option(XL, "XL", 3.0, 80.0),
]


def decide(slo: TokenSlo, *running: Share) -> Choice:
    return choose(OPTIONS, slo, running, retry_after_ms=70.0)


@pytest.mark.parametrize(
    ("token_ms", "name", "limit"),
    [
        (1_000.0, "XL", Limit.NONE),
        (93.0, "XL", Limit.NONE),
        (91.0, "L", Limit.DEADLINE),  # 80 ms and 15 % are 92
        (30.0, "M", Limit.DEADLINE),
        (12.0, "S", Limit.DEADLINE),
        (inf, "XL", Limit.NONE),
    ],
)
def test_an_idle_server_takes_the_best_that_is_fast_enough(token_ms: float, name: str, limit: Limit) -> None:
    found = decide(TokenSlo(token_ms))
    assert (found.option.name, found.limit) == (name, limit)
    assert found.predicted_ms == found.option.token_ms
    assert found.reason.startswith(f"{name}: ")


def test_what_runs_leaves_less() -> None:
    half = Share(token_ms=50.0, slo_ms=100.0)
    found = decide(TokenSlo(200.0), half)  # 0.37 of the thread are left: 80 of 200 ms are too many, 40 are not
    assert (found.option.name, found.limit) == ("L", Limit.BACKLOG)


def test_objectives_that_already_run_are_kept() -> None:
    """Whatever is admitted, the needs of all stay below the whole thread."""
    running: list[Share] = []
    with pytest.raises(Overloaded):
        while True:
            found = decide(TokenSlo(100.0), *running)
            running.append(Share(found.option.token_ms, 100.0))
    names = [next(option.name for option in OPTIONS if option.token_ms == share.token_ms) for share in running]
    assert names == ["XL"]  # 0.8 of the thread; with 15 % on top not even S fits beside it
    assert 1.15 * sum(share.needed for share in running) <= 1


def test_sequences_without_an_objective_keep_nobody_out_and_are_kept_out_by_nobody() -> None:
    idle = [Share(80.0, inf)] * 20
    assert decide(TokenSlo(93.0), *idle).option.name == "XL"
    full = Share(80.0, 93.0)
    assert decide(TokenSlo(), full).option.name == "XL"


def test_the_prediction_is_equal_turns_unless_the_objective_is_tighter() -> None:
    others = [Share(80.0, inf), Share(20.0, inf)]
    assert decide(TokenSlo(), *others).predicted_ms == 180.0
    assert decide(TokenSlo(500.0), *others).predicted_ms == 180.0
    assert decide(TokenSlo(100.0), *others).predicted_ms == 100.0


def test_what_even_an_idle_server_could_not_do_is_infeasible_and_not_an_overload() -> None:
    with pytest.raises(SloInfeasible, match=r"token_latency_ms=11: the fastest allowed \(S\) needs 10\.00 ms"):
        decide(TokenSlo(11.0), Share(80.0, 100.0))


def test_a_refusal_says_when_to_come_back() -> None:
    with pytest.raises(Overloaded, match="80% of the model's time, and S at one token every 20 ms needs 50%") as raised:
        decide(TokenSlo(20.0), Share(80.0, 100.0))
    assert raised.value.retry_after_ms == 70.0


def test_submodels_above_the_loss_are_never_used() -> None:
    assert decide(TokenSlo(max_nats=3.2)).option.name == "XL"
    assert decide(TokenSlo(50.0, max_nats=3.2)).option.name == "L"
    with pytest.raises(SloInfeasible, match=r"the fastest allowed \(L\)"):
        decide(TokenSlo(30.0, max_nats=3.2))
    with pytest.raises(SloInfeasible, match=r"the best \(XL\) reaches 3\.000"):
        decide(TokenSlo(max_nats=2.9))


def test_a_loss_cannot_be_asked_for_where_none_was_measured() -> None:
    unknown = [Option(S, "S", None, 10.0)]
    assert choose(unknown, TokenSlo(), [], 1.0).option.name == "S"
    with pytest.raises(InvalidRequest, match="not evaluated"):
        choose(unknown, TokenSlo(max_nats=3.0), [], 1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_an_objective_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(InvalidRequest, match="token_latency_ms"):
        TokenSlo(value)
    with pytest.raises(InvalidRequest, match="max_nats"):
        TokenSlo(max_nats=value)


def test_times_begin_as_measured() -> None:
    times = TokenTimes({S: 10.0, M: 20.0})
    assert [times.token_ms(submodel, drafts) for submodel in (S, M) for drafts in (False, True)] == [10, 10, 20, 20]


def test_what_slows_one_submodel_down_slows_all_down() -> None:
    times = TokenTimes({S: 10.0, M: 20.0})
    for _ in range(10 * MEMORY_STEPS):
        times.observe(S, False, 15.0, 1)
    assert times.token_ms(S, False) == pytest.approx(15.0, rel=1e-3)
    assert times.token_ms(M, False) == pytest.approx(30.0, rel=1e-3)


def test_what_drafts_bring_is_known_once_it_was_seen_and_of_that_submodel_alone() -> None:
    times = TokenTimes({S: 10.0, M: 20.0})
    for _ in range(10 * MEMORY_TOKENS):
        times.observe(M, True, 24.0, 3, num_drafted=4)
    assert times.token_ms(M, True) == pytest.approx(8.0, rel=1e-3)
    assert (times.token_ms(M, False), times.token_ms(S, True)) == (20.0, 10.0)


def test_a_slower_machine_is_not_taken_for_drafts_that_do_not_pay() -> None:
    times = TokenTimes({M: 20.0})
    for _ in range(10 * MEMORY_STEPS):
        times.observe(M, True, 40.0, 1)  # plain steps of a sequence that may draft
        times.observe(M, True, 40.0, 3, num_drafted=2)
    assert times.token_ms(M, False) == pytest.approx(40.0, rel=1e-3)
    assert times.token_ms(M, True) == pytest.approx(20.0, rel=0.05)  # 80 ms for four tokens


def test_one_slow_step_moves_a_time_by_no_more_than_its_part() -> None:
    times = TokenTimes({S: 10.0})
    times.observe(S, False, 1_000.0, 1)
    assert times.token_ms(S, False) == pytest.approx(10.0 + 990.0 / MEMORY_STEPS)
