import asyncio
import gzip
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from elastic.errors import ConfigError, ElasticError, InvalidRequest, RequestTooLarge
from elastic.serve.payloads.urls import AllowList, ImageFetcher, ImageUrl

LOOPBACK = "127.0.0.0/8"


class FakeResolver(AbstractResolver):
    """Knows the names that a test says, and counts how often it was asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.num_asked = addresses, 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.num_asked += 1
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


class Files(BaseHTTPRequestHandler):
    """`/image` is a file; the others misbehave."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        match self.path:
            case "/image":
                self.answer(200, b"an image", length=8)
            case "/away":
                self.answer(302, b"", length=0, location="/image")
            case "/declared":
                self.answer(200, b"", length=1000)
            case "/endless":
                self.answer(200, b"x" * 1000)
            case "/zipped":
                self.answer(200, gzip.compress(bytes(10_000)))
            case _:
                self.answer(404, b"", length=0)

    def answer(self, status: int, body: bytes, length: int | None = None, location: str | None = None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def files() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.asked = []  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(files: ThreadingHTTPServer, path: str, *more_allowed: str, resolver: FakeResolver | None = None) -> bytes:
    port = files.server_address[1]
    allowed = AllowList.parse([f"images.test:{port}", *more_allowed])
    fetcher = ImageFetcher(allowed, max_bytes=100, resolver=resolver or FakeResolver("127.0.0.1"))
    return asyncio.run(fetcher.fetch(ImageUrl(f"http://images.test:{port}{path}"), "inputs[0].image_url", 30.0))


def test_a_file_of_a_listed_host_is_read_under_its_own_name(files: ThreadingHTTPServer) -> None:
    assert fetch(files, "/image", LOOPBACK) == b"an image"
    (_, headers) = files.asked[0]  # type: ignore[attr-defined]
    assert headers["Host"] == f"images.test:{files.server_address[1]}"


def test_a_host_that_leads_to_an_internal_address_is_not_connected_to(files: ThreadingHTTPServer) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs\[0\].image_url: leads to an address that is not public"):
        fetch(files, "/image")
    assert files.asked == []  # type: ignore[attr-defined]


def test_one_internal_address_among_public_ones_is_enough_to_refuse(files: ThreadingHTTPServer) -> None:
    with pytest.raises(InvalidRequest, match="not public"):
        fetch(files, "/image", resolver=FakeResolver("93.184.215.14", "127.0.0.1"))


def test_a_name_is_resolved_once_so_that_the_checked_address_is_the_one_connected_to(
    files: ThreadingHTTPServer,
) -> None:
    resolver = FakeResolver("127.0.0.1")
    fetch(files, "/image", LOOPBACK, resolver=resolver)
    assert resolver.num_asked == 1


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("/away", InvalidRequest, "status 302"),
        ("/missing", InvalidRequest, "status 404"),
        ("/declared", RequestTooLarge, "size 1000 is above the limit of 100"),
        ("/endless", RequestTooLarge, "limit of 100"),
    ],
)
def test_what_is_not_a_small_file_is_refused(
    files: ThreadingHTTPServer, path: str, error: type[ElasticError], words: str
) -> None:
    with pytest.raises(error, match=words):
        fetch(files, path, LOOPBACK)
    assert len(files.asked) == 1  # type: ignore[attr-defined]


def test_a_compressed_answer_is_not_unpacked(files: ThreadingHTTPServer) -> None:
    assert gzip.decompress(fetch(files, "/zipped", LOOPBACK)) == bytes(10_000)


def test_a_host_that_does_not_answer_ends_with_the_time_limit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        fetcher = ImageFetcher(
            AllowList.parse([f"a.test:{port}", LOOPBACK]), max_bytes=9, resolver=FakeResolver("127.0.0.1")
        )
        with pytest.raises(InvalidRequest, match=r"not read within 0\.05 s"):
            asyncio.run(fetcher.fetch(ImageUrl(f"http://a.test:{port}/"), "field", 0.05))


def test_a_refused_connection_does_not_say_more_than_that() -> None:
    fetcher = ImageFetcher(AllowList.parse(["a.test:1", LOOPBACK]), max_bytes=9, resolver=FakeResolver("127.0.0.1"))
    with pytest.raises(InvalidRequest) as raised:
        asyncio.run(fetcher.fetch(ImageUrl("http://a.test:1/"), "field", 30.0))
    assert str(raised.value) == "field: could not be read from its host"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://images.test/a.png",
        "file:///etc/passwd",
        "//images.test/a.png",
        "http://user:word@images.test/a.png",
        "http://images.test@evil.test/a.png",
        "http://",
        "http://images.test:99999/",
        "http://evil.test/a.png",
        "http://images.test.evil.test/a.png",
        "http://evil-images.test/a.png",
        "http://images.test:8080/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "http://[::1]/",
    ],
)
def test_a_url_that_is_not_of_a_listed_host_at_its_usual_port_is_refused(url: str) -> None:
    resolver = FakeResolver("93.184.215.14")
    fetcher = ImageFetcher(AllowList.parse(["images.test"]), max_bytes=9, resolver=resolver)
    with pytest.raises(InvalidRequest):
        asyncio.run(fetcher.fetch(ImageUrl(url), "field", 1.0))
    assert resolver.num_asked == 0


@pytest.mark.parametrize(
    ("entry", "url", "is_allowed"),
    [
        ("example.com", "https://example.com/a.png", True),
        ("example.com", "https://EXAMPLE.com./a.png", True),
        ("Example.com", "http://example.com/", True),
        ("example.com", "https://cdn.example.com/", False),
        ("*.example.com", "https://cdn.example.com/", True),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://badexample.com/", False),
        ("example.com:8080", "http://example.com:8080/", True),
        ("example.com:8080", "http://example.com/", False),
        ("example.com", "https://example.com:80/", False),
        ("10.1.2.3", "http://10.1.2.3/", True),
    ],
)
def test_entries_name_hosts_ports_and_everything_below(entry: str, url: str, is_allowed: bool) -> None:
    assert AllowList.parse([entry]).allows_host(URL(url)) is is_allowed


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not AllowList(("a.test",)).allows_address(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
def test_public_addresses_are_not_refused(address: str) -> None:
    assert AllowList(("a.test",)).allows_address(address)


def test_a_listed_network_admits_its_addresses_only() -> None:
    allowed = AllowList.parse(["a.test", "10.1.0.0/16"])
    assert allowed.allows_address("10.1.2.3") and allowed.allows_address("::ffff:10.1.2.3")
    assert not allowed.allows_address("10.2.0.1")


@pytest.mark.parametrize("entries", [["https://example.com"], ["exa mple"], [""], ["10.0.0.0/8"], ["10.0.0.1/8"]])
def test_entries_that_mean_nothing_are_refused(entries: list[str]) -> None:
    with pytest.raises(ConfigError, match="image_url_allow"):
        AllowList.parse(entries)
