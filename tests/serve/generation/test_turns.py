from math import inf

from elastic.serve.generation.turns import Turn, next_turn


def run(turns: list[Turn], slos_ms: list[float], until_ms: float) -> list[int]:
    """Tokens of each sequence when every step brings one, with dues from the start."""
    now_ms, counts, number = 0.0, [0] * len(turns), 0
    while now_ms < until_ms:
        for turn, slo_ms, count in zip(turns, slos_ms, counts, strict=True):
            turn.due_ms = slo_ms * (count + 1)
        place = next_turn(turns, now_ms)
        now_ms += turns[place].step_ms
        counts[place] += 1
        turns[place].last = number
        number += 1
    return counts


def test_without_objectives_all_take_turns() -> None:
    assert run([Turn(1.0), Turn(1.0), Turn(1.0)], [inf] * 3, 30.0) == [10, 10, 10]


def test_objectives_that_are_far_from_missed_do_not_change_the_turns() -> None:
    assert run([Turn(1.0), Turn(1.0)], [50.0, inf], 20.0) == [10, 10]


def test_an_objective_is_kept_beside_any_number_without_one() -> None:
    counts = run([Turn(1.0) for _ in range(9)], [2.0, *[inf] * 8], 400.0)
    assert counts[0] >= 199
    assert min(counts[1:]) >= 20  # and the rest is shared


def test_objectives_that_fill_the_thread_are_all_kept() -> None:
    slos_ms = [4.0, 8.0, 8.0, 6.0]  # shares 1/4, 1/8, 1/8 and, at two ms a step, 1/3: 0.83 together
    counts = run([Turn(1.0), Turn(1.0), Turn(1.0), Turn(2.0)], slos_ms, 960.0)
    assert all(count + 1 >= 960.0 / slo_ms for count, slo_ms in zip(counts, slos_ms, strict=True))


def test_of_two_that_are_urgent_the_one_that_is_due_first_goes_first() -> None:
    assert next_turn([Turn(1.0, due_ms=2.0), Turn(1.0, due_ms=1.0)], 0.0) == 1
