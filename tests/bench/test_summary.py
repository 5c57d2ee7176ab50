"""Summaries of a few hand-made requests, in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest

from elastic.bench.load import Outcome, Sample
from elastic.bench.summary import Percentiles, summarise

from .conftest import answered, samples

REFUSED = Sample(2, 10.0, 20.0, 20.0, 22.0, Outcome.REFUSED, "Overloaded")
LOST = Sample(3, 20.0, 30.0, 31.0, 1050.0, Outcome.UNANSWERED, "DEADLINE_EXCEEDED")
MIXED = (
    answered(0, 0.0, 4.0, slo_ms=10.0, granularity="S", quality=0.2, queue_ms=1.0, compute_ms=0.5),
    answered(1, 10.0, 30.0, slo_ms=20.0, quality=0.6, queue_ms=3.0, compute_ms=1.5, slo_met=False),
    REFUSED,
    LOST,
)


def test_every_request_is_in_the_denominator():
    overall = summarise(samples(*MIXED, end_ms=500.0)).overall
    assert overall.requests == 4
    assert overall.attainment == 0.25
    assert overall.shares == {"answered": 0.5, "refused": 0.25, "expired": 0.0, "unanswered": 0.25, "failed": 0.0}
    assert (overall.goodput, overall.throughput) == (2.0, 4.0)


def test_quality_of_all_counts_what_was_not_met_as_nothing():
    overall = summarise(samples(*MIXED)).overall
    assert overall.quality_met == pytest.approx(0.2)
    assert overall.quality_all == pytest.approx(0.05)


def test_latency_is_that_of_the_answered_and_refusals_have_their_own():
    overall = summarise(samples(*MIXED)).overall
    assert overall.latency_ms.p50 == 17.0
    assert overall.latency_ms.p90 == pytest.approx(4 + 0.9 * 26)
    assert overall.refusal_ms.p50 == 2.0


def test_objectives_are_summed_up_apart():
    by_slo = summarise(samples(*MIXED)).by_slo
    assert list(by_slo) == [10.0, 20.0]
    assert (by_slo[10.0].attainment, by_slo[20.0].attainment) == (0.5, 0.0)
    assert (by_slo[10.0].shares["refused"], by_slo[20.0].shares["unanswered"]) == (0.5, 0.5)


def test_images_and_texts_are_summed_up_apart_whatever_became_of_them():
    refused_text = replace(REFUSED, modality="text")
    by_modality = summarise(samples(answered(0, 0.0, 4.0), refused_text)).by_modality
    assert {name: (one.requests, one.attainment) for name, one in by_modality.items()} == {
        "image": (1, 1.0),
        "text": (1, 0.0),
    }


def test_time_in_the_server_that_belongs_to_no_stage_is_named():
    row = answered(0, 0.0, 9.0, total_ms=7.0, preprocess_ms=1.0, queue_ms=2.0, compute_ms=3.0)
    assert summarise(samples(row)).server.between_ms.p50 == 1.0


def test_the_servers_times_stand_beside_what_the_client_saw():
    server = summarise(samples(*MIXED)).server
    assert (server.queue_ms.p50, server.compute_ms.p50, server.total_ms.p50) == (2.0, 1.0, 2.0)
    assert server.outside_ms.p50 == 15.0  # 2 and 28
    assert server.mean_batch == 2.0
    assert server.attainment == 0.25


def test_submodels_are_shares_of_the_answers_and_errors_are_counted():
    summary = summarise(samples(*MIXED))
    assert summary.submodels == {"S": 0.5, "M": 0.5}
    assert summary.errors == {"Overloaded": 1, "DEADLINE_EXCEEDED": 1}


def test_the_traffic_is_what_was_intended():
    summary = summarise(samples(*(answered(n, 10.0 * n, 1.0) for n in range(100)), end_ms=1000.0))
    assert (summary.traffic.requests, summary.traffic.rate) == (100, 100.0)
    assert summary.traffic.cv2 == pytest.approx(0.0)


def test_a_load_without_an_answer_has_no_latency_and_no_quality_but_an_attainment():
    summary = summarise(samples(REFUSED, LOST))
    assert summary.overall.attainment == 0.0 and summary.overall.quality_all == 0.0
    assert math.isnan(summary.overall.quality_met) and math.isnan(summary.overall.latency_ms.p99)
    assert summary.submodels == {}


def test_percentiles_are_linear_and_leave_out_what_is_not_known():
    assert Percentiles.of(np.array([0.0, 10.0, np.nan])) == Percentiles(5.0, 9.0, 9.9)


def late(by_ms: float) -> list[Sample]:
    """Of 100 requests, two are sent late."""
    return [answered(n, 10.0 * n, 5.0, sent_ms=10.0 * n + (by_ms if n < 2 else 0.0)) for n in range(100)]


@pytest.mark.parametrize(
    ("by_ms", "cpu_share", "word"), [(0.5, 0.3, ""), (3.0, 0.3, "late"), (0.5, 0.95, "core")], ids=str
)
def test_a_generator_that_was_the_bottleneck_is_named(by_ms: float, cpu_share: float, word: str):
    problem = summarise(samples(*late(by_ms), cpu_share=cpu_share)).generator_problem
    assert word in problem and bool(problem) == bool(word)
