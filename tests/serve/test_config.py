from pathlib import Path

import pytest

from elastic.errors import ConfigError
from elastic.serve.config import ServeConfig

RUN = Path("runs/a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 0),
        ("port", 70_000),
        ("metrics_port", 9_000),
        ("metrics_port", -1),
        ("log_sample", 1.5),
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
