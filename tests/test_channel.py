"""Channels against real gRPC servers: what is trusted, what is shown, and what a failure advises."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from elastic.channel import Tls, key_metadata, open_aio_channel, open_channel, unavailable_advice
from elastic.errors import ConfigError

from .certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


@contextmanager
def running(credentials: grpc.ServerCredentials | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    add_HealthServicer_to_server(HealthServicer(), server)
    address = "127.0.0.1:0"
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(scope="module")
def tls_server(authority: Authority) -> Iterator[str]:
    cert, key = authority.issue("server")
    with running(grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])) as address:
        yield address


@pytest.fixture(scope="module")
def mutual_server(authority: Authority) -> Iterator[str]:
    cert, key = authority.issue("mutual")
    pair = (key.read_bytes(), cert.read_bytes())
    with running(grpc.ssl_server_credentials([pair], authority.ca.read_bytes(), True)) as address:
        yield address


def check(address: str, tls: Tls | None) -> int:
    with open_channel(address, tls) as channel:
        return HealthStub(channel).Check(HealthCheckRequest(), timeout=30).status


def advice(address: str, tls: Tls | None) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        check(address, tls)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    return unavailable_advice(raised.value.details())  # type: ignore[attr-defined]


def test_a_server_that_the_given_authority_vouches_for_is_trusted(tls_server: str, authority: Authority) -> None:
    assert check(tls_server, Tls(ca=authority.ca)) == HealthCheckResponse.SERVING


async def aio_check(address: str, tls: Tls | None) -> int:
    async with open_aio_channel(address, tls) as channel:
        return (await HealthStub(channel).Check(HealthCheckRequest(), timeout=30)).status


def test_the_asyncio_channel_trusts_the_same(tls_server: str, authority: Authority) -> None:
    assert asyncio.run(aio_check(tls_server, Tls(ca=authority.ca))) == HealthCheckResponse.SERVING
    with running(None) as address:
        assert asyncio.run(aio_check(address, None)) == HealthCheckResponse.SERVING


def test_a_client_certificate_is_shown(mutual_server: str, authority: Authority) -> None:
    cert, key = authority.issue("client")
    assert check(mutual_server, Tls(ca=authority.ca, cert=cert, key=key)) == HealthCheckResponse.SERVING


def test_a_server_of_an_unknown_authority_or_another_name_is_not_trusted(
    tls_server: str, authority: Authority, stranger: Authority
) -> None:
    assert advice(tls_server, Tls(ca=stranger.ca)).startswith("check the CA")
    assert advice(tls_server, Tls()).startswith("check the CA")
    assert advice(tls_server, Tls(ca=authority.ca, server_name="other.example")).startswith("check the CA")


def test_a_server_under_another_name_is_trusted_when_that_name_is_asked_for(
    tls_server: str, authority: Authority
) -> None:
    assert check(tls_server, Tls(ca=authority.ca, server_name="localhost")) == HealthCheckResponse.SERVING


def test_a_client_in_the_clear_or_without_certificate_is_told_what_to_give(
    tls_server: str, mutual_server: str, authority: Authority
) -> None:
    assert advice(tls_server, None).startswith("if it serves TLS, give its CA")
    assert "client certificate" in advice(mutual_server, Tls(ca=authority.ca))


def test_nobody_at_the_address_is_an_advice_to_start_a_server() -> None:
    assert "elastic serve" in advice("127.0.0.1:1", None)


def test_a_certificate_without_its_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.key.*tls\.cert is given"):
        Tls(cert=tmp_path / "a.pem")
    with pytest.raises(ConfigError, match=r"tls\.ca=.*a\.pem.*No such file"):
        open_channel("127.0.0.1:1", Tls(ca=tmp_path / "a.pem"))


def test_the_key_is_the_argument_else_the_variable_else_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELASTIC_API_KEY", raising=False)
    assert key_metadata() == []
    monkeypatch.setenv("ELASTIC_API_KEY", "from-variable")
    assert key_metadata() == [("authorization", "Bearer from-variable")]
    assert key_metadata("given") == [("authorization", "Bearer given")]
    assert key_metadata("") == []


@pytest.mark.parametrize("key", ["secret\n", "two words", "schl\u00fcssel"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="visible ASCII") as raised:
        key_metadata(key)
    assert key.strip() not in str(raised.value)
