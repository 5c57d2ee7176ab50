"""The report shows what the scores say."""

import pytest

from elastic.lm.evaluation import LmEvaluation
from elastic.lm.report import PLOT, REPORT, report, write_report
from elastic.lm.training.validation import Scores
from elastic.model.decoder import DecoderConfig
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect


@pytest.fixture
def found() -> LmEvaluation:
    config = DecoderConfig(vocab_size=300, width=16, depth=2, num_heads=2, head_dim=8, num_kv_heads=2, ffn_dims=(8, 16))
    scores = {
        submodel: Scores(nats=4.0 - index / 4, agreement=0.5 + index / 4, kl=0.4 - index / 5)
        for index, submodel in enumerate(config.space.mixes())
    }
    return LmEvaluation(
        run_name="tiny",
        config=config,
        block_size=16,
        num_tokens=1600,
        bytes_per_token=2.0,
        scores=scores,
        provenance=collect(device_fingerprint()),
    )


def test_a_line_has_loss_perplexity_loss_per_byte_agreement_divergence_and_cost(found):
    cost = found.cost(found.config.space.full)
    line = (
        f"| **g1** `ffn=16x2` | 3.5000 | 33.12 | 1.7500 | 1.000 | 0.0000 | {cost.params:,} | {cost.flops / 1e6:.2f} |"
    )
    assert line in report(found)


def test_a_mix_stands_beside_the_line_between_its_sizes(found):
    assert "| `ffn=8x1+16x1` | 3.7500 | 42.52 | +0.0000 | 0.750 |" in report(found)


def test_the_report_links_the_plot_beside_it(found, tmp_path):
    write_report(tmp_path, found)
    assert f"]({PLOT})" in (tmp_path / REPORT).read_text() and (tmp_path / PLOT).stat().st_size > 1000
