"""Whose step the model computes next: all in turn, unless somebody would otherwise be late.

Pure: no torch, no ray, no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(slots=True)
class Turn:
    """What the order of sequences goes by."""

    step_ms: float
    """How long a step of it is expected to take."""
    due_ms: float = inf
    """When its next token should be there; infinite before its first, and where nothing was asked."""
    last: int = -1
    """Number of its latest turn."""


def next_turn(turns: Sequence[Turn], now_ms: float) -> int:
    """The place of the one to go on with.

    Whoever would be late after one round of all others goes first, the one that is due first of those; that keeps
    every objective that can be kept. Otherwise it is whoever has waited for most turns, so that nobody stutters.
    """
    round_ms = sum(turn.step_ms for turn in turns)
    urgent = [place for place, turn in enumerate(turns) if turn.due_ms <= now_ms + round_ms]
    if urgent:
        return min(urgent, key=lambda place: (turns[place].due_ms, turns[place].last))
    return min(range(len(turns)), key=lambda place: turns[place].last)
