"""The pieces of the fault benchmark: mutations from a seed, what counts as a leak, and when a server has recovered."""

import math
import random

import pytest

from benchmarks.faults.mutations import INTERNALS, calls, examples, mutated
from benchmarks.faults.overload import recovery_s
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.bench.windows import Window


def test_examples_are_valid_and_mutations_of_them_differ_and_repeat_with_the_seed():
    messages = examples([b"image"])
    for message in messages:
        assert pb.EmbedRequest.FromString(message).inputs
    first, again = ([mutated(messages, random.Random(seed)) for seed in range(200)] for _ in range(2))
    assert first == again
    assert sum(message not in messages for message in first) > 150


def test_every_method_that_ends_by_itself_is_called():
    methods = {method.rpartition("/")[2] for method, _ in calls(300, 0, examples([b"image"]))}
    assert methods == {"Embed", "EmbedStream", "Info", "Check", "List"}


@pytest.mark.parametrize(
    "message",
    [
        "Unexpected <class 'google.protobuf.message.DecodeError'>: Error parsing message",
        'File "/opt/elastic/serve/engine.py", line 3',
        "cannot identify image file <_io.BytesIO object at 0x7f0000000000>",
        "Traceback (most recent call last)",
        "'NoneType' has no attribute",
    ],
)
def test_what_shows_the_inside_is_found(message: str):
    assert INTERNALS.search(message)


@pytest.mark.parametrize(
    "message",
    ["message: is not a valid elastic.v1.EmbedRequest", "inputs[0].image: is not a readable image; send one of PNG"],
)
def test_what_a_caller_is_told_is_not(message: str):
    assert not INTERNALS.search(message)


def window(number: int, attainment: float, p99_ms: float) -> Window:
    return Window(500.0 * number, 500.0 * (number + 1), 10, 20.0, attainment, 0.0, 1.0, p99_ms)


def test_a_server_has_recovered_when_three_windows_in_a_row_are_as_before():
    before = [window(number, 1.0, 20.0) for number in range(4)]
    qualities = [(0.2, 90.0), (1.0, 25.0), (0.9, 20.0), (1.0, 29.0), (1.0, 20.0), (1.0, 20.0)]
    after = [window(number, *quality) for number, quality in enumerate(qualities)]
    assert recovery_s(before, after) == 1.5
    assert recovery_s(before, after[:5]) == math.inf
    assert recovery_s(before, before) == 0.0
