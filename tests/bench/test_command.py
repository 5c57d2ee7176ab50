"""`elastic bench serve` and `elastic bench report` against a server without a model."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from elastic import cli
from elastic.bench import command
from elastic.bench.command import PLOT, RESULT, SAMPLES, Report, Serve
from elastic.bench.load import Samples
from elastic.errors import ConfigError, DataError
from elastic.simulate.trace import draw

from .conftest import FakeService, serving

FLAGS = (
    "api-key concurrency connections duration-s embed-dim images intervals-file latency-slo-ms out rate seed shape "
    "slo-weights stop-early text-share tls-ca tls-cert tls-key tolerance trace warmup-s window-s"
)
"""What scripts rely on."""


SHORT: dict = {"duration_s": 0.6, "warmup_s": 0.2, "window_s": 0.2, "rate": 100.0}
KEY = "hunter2"


@dataclass(frozen=True)
class Measured:
    """One load that was sent for all tests here."""

    service: FakeService
    folder: Path
    shown: str

    @property
    def result(self) -> dict:
        return json.loads((self.folder / RESULT).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder = tmp_path_factory.mktemp("bench") / "new"
    flags = ["--rate", "100", "--duration-s", "0.6", "--warmup-s", "0.2", "--window-s", "0.2", "--api-key", KEY]
    with serving() as service, pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
        words = ["bench", "serve", service.address, "--latency-slo-ms", "1000", "2000", "--out", str(folder), *flags]
        patch.setattr("sys.argv", ["elastic", *words])
        assert cli.main(words) == 0
        yield Measured(service, folder, shown.getvalue())


def test_the_flags_of_bench_serve_are_pinned(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["bench", "serve", "--help"])
    page = capsys.readouterr().out
    shown = re.findall(r"^[^\w\n-]*--(?!no-)([a-z][a-z0-9-]*)", page, re.MULTILINE)
    assert " ".join(sorted(set(shown))) == FLAGS


def test_a_load_is_sent_and_shown(measured: Measured):
    assert "fake at 127.0.0.1" in measured.shown
    assert "poisson arrivals at 100/s, objectives 1000, 2000 ms" in measured.shown
    assert "M 100.0%" in measured.shown and "stabilise" in measured.shown


def test_numbers_samples_and_a_picture_are_kept(measured: Measured):
    result, kept = measured.result, Samples.load(measured.folder / SAMPLES)
    assert result["summary"]["overall"]["requests"] == len(kept) > 20
    assert set(result["summary"]["by_slo"]) == {"1000", "2000"} == {f"{slo:g}" for slo in set(kept.slo_ms)}
    assert result["server"] == {"model": "fake", "version": "v", "device": "a test"}
    assert result["generator"]["command"].startswith("elastic bench serve") and len(result["windows"]) >= 2
    with Image.open(measured.folder / PLOT) as picture:
        assert picture.size[0] > 500


def test_the_warm_up_is_sent_and_not_counted(measured: Measured):
    kept = Samples.load(measured.folder / SAMPLES)
    assert kept.begin_ms == 200.0 and kept.intended_ms.min() >= 200.0
    assert len(measured.service.calls) > len(kept)


def test_a_key_is_sent_and_written_nowhere(measured: Measured):
    assert {call.metadata["authorization"] for call in measured.service.calls} == {f"Bearer {KEY}"}
    assert KEY not in measured.shown
    assert KEY.encode() not in b"".join(path.read_bytes() for path in measured.folder.iterdir())


def test_a_report_shows_an_earlier_load_again(measured: Measured, capsys: pytest.CaptureFixture[str]):
    (measured.folder / PLOT).unlink()
    Report(folder=measured.folder).run()
    after = capsys.readouterr().out
    rows = [line for line in measured.shown.splitlines() if line.strip().startswith(("2000 ms", "server: queue"))]
    assert len(rows) == 2 and all(row in after for row in rows)
    assert (measured.folder / PLOT).exists()


def test_counted_arrivals_are_those_of_a_simulation_with_the_same_seed():
    load = Serve(**SHORT, shape="bursty", seed=7).load()
    assert load.at_ms is not None
    np.testing.assert_allclose(load.at_ms[load.at_ms >= 200.0], 200.0 + draw("bursty", 100.0, 600.0, seed=7))


def test_a_file_of_arrivals_is_sent_as_it_is(tmp_path: Path):
    (tmp_path / "trace.txt").write_text("0\n50\n60\n")
    load = Serve(intervals_file=tmp_path / "trace.txt", warmup_s=0.0).load()
    assert load.at_ms is not None and load.at_ms.tolist() == [0.0, 50.0, 60.0] and load.span_ms == 60.0


def test_a_recorded_trace_is_fitted_to_the_rate_and_duration(tmp_path: Path):
    (tmp_path / "trace.txt").write_text("0\n1000\n4000\n")
    load = Serve(trace=tmp_path / "trace.txt", warmup_s=0.0, rate=3.0, duration_s=1.0).load()
    assert load.at_ms is not None and load.at_ms.tolist() == [0.0, 250.0, 1000.0] and load.span_ms == 1000.0


def test_a_closed_loop_has_workers_instead_of_arrivals():
    load = Serve(concurrency=2, duration_s=5.0, warmup_s=1.0).load()
    assert (load.at_ms, load.concurrency, load.span_ms) == (None, 2, 6_000.0)


def test_only_a_steady_load_may_end_early(tmp_path: Path):
    assert Serve().steady and Serve(shape="bursty", concurrency=1).steady
    assert not any(Serve(**one).steady for one in ({"shape": "bursty"}, {"shape": "accelerating"}))
    assert not Serve(intervals_file=tmp_path).steady and not Serve(trace=tmp_path).steady


def test_a_steady_load_ends_once_it_is_stable(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "plot", lambda title, samples: Figure())
    # With this tolerance any three windows that answered something agree.
    Serve(**SHORT | {"duration_s": 30.0}, address=service.address, out=tmp_path, tolerance=100.0).run()
    assert Samples.load(tmp_path / SAMPLES).end_ms < 15_000.0
    assert json.loads((tmp_path / RESULT).read_text(encoding="utf-8"))["stable"]


def test_texts_are_not_sent_to_a_server_that_embeds_none(service: FakeService, tmp_path: Path):
    with pytest.raises(ConfigError, match="embeds no texts"):
        Serve(**SHORT, address=service.address, out=tmp_path, text_share=0.5).run()
    assert not service.calls


def test_a_report_of_nothing_says_so(tmp_path: Path):
    with pytest.raises(DataError, match="elastic bench serve"):
        Report(folder=tmp_path).run()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"duration_s": 0.0},
        {"window_s": -1.0},
        {"tolerance": 0.0},
        {"warmup_s": -1.0},
        {"concurrency": 2, "intervals_file": Path("a")},
        {"concurrency": 2, "trace": Path("a")},
        {"trace": Path("a"), "intervals_file": Path("a")},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(wrong: dict):
    with pytest.raises(ConfigError):
        Serve(**wrong)


def test_any_tls_flag_encrypts_and_a_missing_file_is_named_before_anything_is_sent(tmp_path: Path):
    assert Serve().tls() is None
    with pytest.raises(ConfigError, match=r"tls\.ca"):
        Serve(tls_ca=tmp_path / "none.pem", out=tmp_path).run()
