from pathlib import Path

import pytest

from elastic.errors import ConfigError
from elastic.serve.config import ServeConfig, is_loopback

RUN = Path("runs/a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 0),
        ("port", 70_000),
        ("metrics_port", 9_000),
        ("metrics_port", -1),
        ("log_sample", 1.5),
        ("reply_margin_ms", -1.0),
        ("max_batch_size", 0),
        ("default_latency_ms", -1.0),
        ("decode_threads", 0),
        ("drain_s", 0.0),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as raised:
        ServeConfig(run=RUN, **{field: value})  # type: ignore[arg-type]
    assert raised.value.field == f"serve.{field}"


def test_one_call_must_fit_into_the_queue() -> None:
    with pytest.raises(ConfigError, match="max_items_per_call"):
        ServeConfig(run=RUN, max_items_per_call=100, max_waiting_items=50)


def test_the_server_is_on_loopback_and_refuses_foreign_tables_unless_told() -> None:
    config = ServeConfig(run=RUN)
    assert (config.host, config.force_foreign_tables) == ("127.0.0.1", False)


def test_http_takes_the_next_port_unless_told_otherwise() -> None:
    assert ServeConfig(run=Path("run"), port=9_000).port_of_http == 9_001
    assert ServeConfig(run=Path("run"), port=9_000, http_port=80).port_of_http == 80


@pytest.mark.parametrize("ports", [{"port": 65_535}, {"http_port": 0}, {"port": 9_000, "http_port": 9_000}])
def test_an_http_port_that_cannot_be_is_refused(ports: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"serve\.http_port"):
        ServeConfig(run=Path("run"), **ports)  # type: ignore[arg-type]


def test_an_image_host_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_url_allow"):
        ServeConfig(run=Path("run"), image_url_allow=("https://example.com",))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "server.example"])
def test_other_machines_need_keys_or_the_operators_word(host: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.host.*elastic keys add.*--insecure-public"):
        ServeConfig(run=RUN, host=host)
    assert ServeConfig(run=RUN, host=host, api_keys=Path("keys.json")).host == host
    assert ServeConfig(run=RUN, host=host, insecure_public=True).host == host


def test_certificates_of_clients_do_not_stand_in_for_keys() -> None:
    with pytest.raises(ConfigError, match="--api-keys"):
        ServeConfig(run=RUN, host="0.0.0.0", tls_cert=RUN, tls_key=RUN, client_ca=RUN)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("", False), ("10.0.0.1", False)],
)
def test_only_loopback_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("fields", "missing"),
    [({"tls_cert": RUN}, "tls_key"), ({"tls_key": RUN}, "tls_cert"), ({"client_ca": RUN}, "client_ca")],
)
def test_half_of_a_tls_setup_is_refused_with_the_flag_that_is_missing(fields: dict[str, Path], missing: str) -> None:
    with pytest.raises(ConfigError, match="--tls-cert") as raised:
        ServeConfig(run=RUN, **fields)  # type: ignore[arg-type]
    assert raised.value.field == f"serve.{missing}"
