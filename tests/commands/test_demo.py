"""The demo's own parts: where objectives are placed, what a row says, and how stages start and stop."""

import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from elastic.commands import demo
from elastic.commands.demo import Answer, Ask, cells, collect, ladder, quantile_ms, render, unused
from elastic.errors import ElasticError, ServerUnavailable, SloInfeasible
from elastic.submodel import Submodel

REFUSAL = SloInfeasible("latency_ms=0.1", "the fastest needs 1.0 ms", "raise it")


def embedding(granularity: str = "S", quality: float = 0.4, predicted_ms: float = 1.0) -> demo.Embedding:
    return demo.Embedding(
        vectors=(),
        modality="image",
        submodel=Submodel((8,)),
        granularity=granularity,
        embed_dim=16,
        quality=quality,
        queue_ms=0.0,
        compute_ms=1.0,
        predicted_ms=predicted_ms,
        preprocess_ms=0.1,
        total_ms=1.5,
        slack_ms=1.0,
        slo_met=True,
        batch_size=1,
        limited_by="none",
        reason="",
        model_version="v",
    )


def test_the_ladder_starts_below_what_is_possible_then_rises_then_tries_every_width():
    rows = ladder([1.0, 2.0, 4.0], overhead_ms=3.0, embed_dims=[16, 32, 64])
    impossible, *tight = [ask.latency_ms for ask in rows[:-3]]
    assert impossible < 1.0
    assert tight == sorted(set(tight)) and tight[0] > 3.0 + 1.0 and tight[-1] > 3.0 + 4.0
    assert [ask.embed_dim for ask in rows[-3:]] == [64, 32, 16]
    assert all(ask.embed_dim == 64 for ask in rows[:-3])


def test_equally_fast_submodels_give_one_tight_row_and_not_four():
    rows = ladder([2.0, 2.0], overhead_ms=1.0, embed_dims=[16])
    assert len(rows) == 3


def test_a_row_counts_late_answers_and_refusals_as_not_met():
    found = [Answer(embedding(), 4.0), Answer(embedding(), 6.0), REFUSAL, Answer(embedding(), 5.0)]
    assert cells(Ask(5.0, 16), found)[-2:] == ("2/4", "1")


def test_a_row_shows_the_shares_of_submodels_and_the_medians():
    found = [Answer(embedding("XL", 0.6, 2.0), 3.0), Answer(embedding("XL", 0.6, 2.0), 3.0), Answer(embedding(), 9.0)]
    name, quality, predicted, measured, met, refused = cells(Ask(5.0, 16), found)
    assert name == "XL 67%, S 33%"
    assert (quality, predicted, met, refused) == ("0.600", "2.00", "2/3", "0")
    assert measured.startswith("3.0 / ")


def test_a_row_of_refusals_names_the_error_and_no_numbers():
    assert cells(Ask(0.1, 16), [REFUSAL, REFUSAL]) == ("refused: SloInfeasible", "-", "-", "-", "0/2", "2")


def test_collect_keeps_every_outcome_and_only_errors_of_this_package():
    def send(ask: Ask, image: bytes) -> demo.Embedding:
        if image == b"bad":
            raise REFUSAL
        return embedding()

    found = collect(send, Ask(5.0, 16), [b"good", b"bad"], num_requests=4)
    assert [isinstance(outcome, ElasticError) for outcome in found] == [False, True, False, True]

    def broken(ask: Ask, image: bytes) -> demo.Embedding:
        raise KeyError

    with pytest.raises(KeyError):
        collect(broken, Ask(5.0, 16), [b"good"], num_requests=1)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_quantiles_agree_with_numpy(share: float):
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    assert quantile_ms(values, share) == pytest.approx(np.quantile(values, share))
    assert quantile_ms([7.0], share) == 7.0


def test_the_table_has_a_line_for_every_row():
    outcomes = {Ask(5.0, 16): [Answer(embedding(), 4.0)], Ask(0.1, 16): [REFUSAL]}
    console = Console(width=140, record=True, file=StringIO())
    console.print(render(outcomes, 1.5, "a processor"))
    shown = console.export_text()
    assert "S 100%" in shown and "refused: SloInfeasible" in shown and "1.5 ms" in shown and "a processor" in shown


def test_a_new_run_never_takes_an_existing_directory(tmp_path: Path):
    assert unused(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert unused(tmp_path / "demo") == tmp_path / "demo-3"


def test_a_failing_verb_ends_the_demo_with_its_exit_code(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        demo.run_verb(["no-such-verb"])
    assert stopped.value.code == 2
    assert "no verb 'no-such-verb'" in capfd.readouterr().err


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path):
    log = tmp_path / "serve.log"
    with (
        pytest.raises(ServerUnavailable, match="no verb 'no-such-server'"),
        demo.server(Console(file=StringIO()), ["no-such-server"], "127.0.0.1:1", log),
    ):
        pass
    assert "no-such-server" in log.read_text()


def test_a_silent_server_is_given_up_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(demo, "READY_TIMEOUT_S", 0.0)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(ServerUnavailable, match="not ready"):
            demo.wait_for(process, f"127.0.0.1:{demo.free_port()}", tmp_path / "log")
    finally:
        process.kill()
        process.wait()


def test_a_free_port_can_be_listened_on():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", demo.free_port()))


def test_the_images_sent_are_encoded_files_of_the_test_split():
    images = demo.test_images()
    assert len(images) == 256
    assert all(image[:4] in (b"RIFF", b"\x89PNG") for image in images)
