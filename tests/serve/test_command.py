import io
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from elastic.errors import ConfigError, ProfileError
from elastic.profile.device import device_fingerprint
from elastic.profile.latency import LatencyConfig
from elastic.profile.provenance import Device
from elastic.profile.store import LATENCY, load_latency
from elastic.profile.tables import LatencyTable
from elastic.serve import command
from elastic.serve.app import Server
from elastic.serve.command import Serve, check_generates, ensure_profiled, ready_message, security_warnings
from elastic.serve.config import ServeConfig
from elastic.serve.scaling.scaler import ScalingRules


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy whose tables may be changed."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def make_foreign(run: Path) -> None:
    table = LatencyTable.load(run / LATENCY)
    elsewhere = replace(table.provenance, device=Device("another machine", 96, "AVX512"))
    LatencyTable(table.rows, elsewhere).save(run / LATENCY)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "QUICK", LatencyConfig(rounds=1, warmup_rounds=0, max_s=1.0))


def test_a_table_of_this_machine_is_kept(run: Path, console: Console) -> None:
    before = (run / LATENCY).read_bytes()
    ensure_profiled(ServeConfig(run=run), "auto", console)
    assert (run / LATENCY).read_bytes() == before
    assert shown(console) == ""


@pytest.mark.parametrize("problem", ["missing", "foreign"])
def test_a_missing_or_foreign_table_is_measured_and_the_user_told(run: Path, console: Console, problem: str) -> None:
    if problem == "missing":
        (run / LATENCY).unlink()
    else:
        make_foreign(run)
    ensure_profiled(ServeConfig(run=run), "auto", console)
    assert load_latency(run, device_fingerprint()).submodels("text")
    assert "measuring this machine first" in shown(console)


def test_never_measuring_means_refusing_a_foreign_table(run: Path, console: Console) -> None:
    make_foreign(run)
    with pytest.raises(ProfileError, match="another machine"):
        ensure_profiled(ServeConfig(run=run), "never", console)


def test_a_forced_foreign_table_is_used_as_it_is(run: Path, console: Console) -> None:
    make_foreign(run)
    ensure_profiled(ServeConfig(run=run, force_foreign_tables=True), "auto", console)
    assert shown(console) == ""


def test_other_settings_than_measured_are_measured(run: Path, console: Console) -> None:
    config = ServeConfig(run=run, dtype="bfloat16")
    ensure_profiled(config, "auto", console)
    assert load_latency(run, device_fingerprint()).where(dtype="bfloat16").rows


def test_the_verbs_flags_become_the_servers_settings() -> None:
    config = Serve(port=9_123, num_threads=2, quantile="p99").config(Path("runs/a"))
    assert (config.run, config.port, config.num_threads, config.quantile) == (Path("runs/a"), 9_123, 2, "p99")


def test_the_number_of_replicas_is_fixed_unless_it_may_grow() -> None:
    assert Serve(num_replicas=2).config(Path("runs/a")).scaling is None
    config = Serve(min_replicas=0, max_replicas=4, scale_down_after_s=7.0).config(Path("runs/a"))
    assert config.scaling == ScalingRules(min_replicas=0, max_replicas=4, down_after_s=7.0)
    assert (config.num_replicas, config.most_replicas) == (1, 4)
    assert "0 to 4 replica(s)" in ready_message(Server("127.0.0.1:9000", "127.0.0.1:9001", Path("logs")), config)


def test_a_least_number_without_a_largest_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-replicas"):
        Serve(min_replicas=0).config(Path("runs/a"))


def test_the_ready_message_has_a_command_that_works_as_it_stands() -> None:
    config = ServeConfig(run=Path("runs/a"))
    usual = ready_message(Server("127.0.0.1:9000", "127.0.0.1:9001", Path("logs")), config)
    other = ready_message(Server("127.0.0.1:9111", "127.0.0.1:9112", Path("logs")), config)
    assert "elastic embed IMAGE.png --latency-slo-ms 20\n" in usual
    assert "--server 127.0.0.1:9111\n" in other
    assert "curl http://127.0.0.1:9112/v1/models\n" in other
    assert "/metrics" not in usual


def test_the_ready_message_names_the_metrics_if_there_are_any() -> None:
    server = Server("127.0.0.1:9000", "127.0.0.1:9001", Path("logs"), "http://127.0.0.1:9090/metrics")
    assert "http://127.0.0.1:9090/metrics\n" in ready_message(server, ServeConfig(run=Path("runs/a")))


def test_replicas_are_told_where_to_log_whatever_folder_they_run_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Serve(log_requests=Path("logs")).config(Path("runs/a"))
    server = Server("127.0.0.1:9000", "127.0.0.1:9001", Path("logs"))
    assert config.log_requests == tmp_path / "logs"
    assert f"{tmp_path}/logs/requests-*.jsonl\n" in ready_message(server, config)


def test_the_ready_message_names_the_flags_that_a_client_needs() -> None:
    keys, cert = Path("keys.json"), Path("server.pem")
    config = ServeConfig(run=Path("runs/a"), api_keys=keys, tls_cert=cert, tls_key=cert, client_ca=cert)
    shown = ready_message(Server("127.0.0.1:9000", "127.0.0.1:9001", Path("logs")), config)
    assert "https://127.0.0.1:9001" in shown
    assert "ELASTIC_API_KEY=... elastic embed" in shown
    assert "--tls-ca CA.pem --tls-cert CLIENT.pem --tls-key CLIENT.key" in shown
    assert "-plaintext" not in shown


def test_an_open_or_readable_server_is_warned_about() -> None:
    run, file = Path("runs/a"), Path("file")
    assert security_warnings(ServeConfig(run=run)) == []
    no_keys, readable = security_warnings(ServeConfig(run=run, host="0.0.0.0", insecure_public=True))
    assert "anybody" in no_keys and "in the clear" in readable
    assert security_warnings(ServeConfig(run=run, host="0.0.0.0", api_keys=file)) == [readable]
    assert security_warnings(ServeConfig(run=run, host="0.0.0.0", api_keys=file, tls_cert=file, tls_key=file)) == []


@pytest.mark.serve
@pytest.mark.slow
def test_the_embed_verb_prints_the_choice_and_writes_the_array(server: str, png: bytes, tmp_path: Path) -> None:
    image, output = tmp_path / "red.png", tmp_path / "out.npy"
    image.write_bytes(png)
    flags = ["--latency-slo-ms", "60000", "--embed-dim", "16", "--server", server, "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "elastic", "embed", "a red house", str(image), *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env={"COLUMNS": "200", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "XL" in done.stdout and "objective met" in done.stdout
    assert np.load(output).shape == (2, 16)


def test_a_language_model_is_tried_with_a_prompt(tmp_path: Path) -> None:
    config = ServeConfig(run=tmp_path, api_keys=tmp_path / "keys.json")
    server = Server(address="127.0.0.1:9000", http_address="127.0.0.1:9001", log_dir=tmp_path)
    message = ready_message(server, config, "decoder")
    assert "http://127.0.0.1:9001/v1/completions" in message and '"stream": true' in message
    assert "authorization: Bearer $ELASTIC_API_KEY" in message and "elastic embed" not in message


def test_what_a_language_model_cannot_be_served_with_is_refused(tmp_path: Path) -> None:
    check_generates(ServeConfig(run=tmp_path), {})
    with pytest.raises(ConfigError, match=r"serve\.max_replicas=4: .* fixed number of replicas"):
        check_generates(ServeConfig(run=tmp_path, scaling=ScalingRules(max_replicas=4)), {})
    with pytest.raises(ConfigError, match="not traced"):
        check_generates(ServeConfig(run=tmp_path), {"OTEL_TRACES_EXPORTER": "console"})
