"""Images by URL: off unless the operator lists hosts, and then nothing but those is ever connected to.

A server that reads URLs for its callers can be made to read what only it can reach. So a URL must name a listed host
on its usual port (or the listed one); the host's name is resolved once, every address is checked, and the connection
goes to the checked addresses, not to what a second look-up might give; redirects are refused; size and time are
limited. Addresses that are not public (private, loopback, link-local such as the cloud's metadata service, shared,
reserved) are refused even for listed hosts, unless their network is listed too.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from elastic.errors import ConfigError, InvalidRequest, RequestTooLarge

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARS = 2_000
PORTS = {"http": 80, "https": 443}
PUBLIC_BUT_INTERNAL = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Azure's host agent, which every virtual machine there reaches at a public address."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*(:\d+)?")


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """Where to read an image."""

    url: str


@dataclass(frozen=True, slots=True)
class AllowList:
    """What an operator has listed."""

    hosts: tuple[str, ...]
    """`example.com`, `example.com:8080`, or `*.example.com` for everything below it."""
    networks: tuple[Network, ...] = ()
    """Addresses that are not public and that listed hosts may have nevertheless."""

    @classmethod
    def parse(cls, entries: Sequence[str]) -> "AllowList":
        """Read hosts and networks (`10.1.0.0/16`); an address on its own is a host and its network.

        Raises:
            ConfigError: an entry is neither.
        """
        hosts, networks = [], []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if not _HOST.fullmatch(entry.lower()):
                    rule = "must be a host, host:port, *.host, an address or a network such as 10.1.0.0/16"
                    raise ConfigError("serve.image_url_allow", entry, rule) from None
            if "/" not in entry:
                hosts.append(entry.lower())
        if networks and not hosts:
            raise ConfigError("serve.image_url_allow", tuple(entries), "lists networks, but no host")
        return cls(tuple(hosts), tuple(networks))

    def allows_host(self, url: URL) -> bool:
        """Whether the host of a URL is listed, at its port."""
        host = (url.host or "").rstrip(".").lower()
        names = [host, *(f"*{host[index:]}" for index, char in enumerate(host) if char == "." and index)]
        is_usual = url.port == PORTS[url.scheme]
        return any(f"{name}:{url.port}" in self.hosts or (is_usual and name in self.hosts) for name in names)

    def allows_address(self, text: str) -> bool:
        """Whether a connection may go to an address: a public one, or one of a listed network."""
        address = _innermost(ipaddress.ip_address(text.partition("%")[0]))
        if any(address in network for network in self.networks):
            return True
        return address.is_global and not address.is_multicast and address not in PUBLIC_BUT_INTERNAL


class ImageFetcher:
    """Reads image files from listed hosts, a few at once."""

    def __init__(
        self,
        allowed: AllowList,
        *,
        max_bytes: int,
        timeout_s: float = 5.0,
        num_at_once: int = 16,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._allowed, self._max_bytes, self._timeout_s = allowed, max_bytes, timeout_s
        self._places = asyncio.Semaphore(num_at_once)
        self._resolver = resolver

    async def fetch(self, image: ImageUrl, field: str, limit_s: float) -> bytes:
        """The bytes behind a URL, within `limit_s` and the fetcher's own time limit; errors name `field`.

        Raises:
            InvalidRequest: the URL is not allowed, or does not lead to a file in time.
            RequestTooLarge: the file is above the limit.
        """
        url = self._check(image.url, field)
        timeout_s = max(0.0, min(limit_s, self._timeout_s))
        try:
            async with asyncio.timeout(timeout_s), self._places:
                return await self._get(url, field)
        except TimeoutError as error:
            raise InvalidRequest(field, f"was not read within {timeout_s:.3g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            # Its own words would tell the caller about the network that the server is in.
            raise InvalidRequest(field, "could not be read from its host") from error

    def _check(self, text: str, field: str) -> URL:
        if len(text) > MAX_URL_CHARS:
            raise RequestTooLarge(field, len(text), MAX_URL_CHARS)
        try:
            url = URL(text)
            is_web = url.scheme in PORTS and url.host is not None and url.port is not None
        except ValueError as error:
            raise InvalidRequest(field, "is not a URL") from error
        if not is_web or url.user is not None or url.password is not None:
            raise InvalidRequest(field, "is not an http or https URL without a user name")
        if not self._allowed.allows_host(url):
            raise InvalidRequest(field, f"its host {url.host} (port {url.port}) is not one that this server reads from")
        # The resolver is not asked about an address.
        if _is_address(url.host or "") and not self._allowed.allows_address(url.host or ""):
            raise InvalidRequest(field, "leads to an address that is not public")
        return url

    async def _get(self, url: URL, field: str) -> bytes:
        resolver = _CheckedResolver(self._resolver or aiohttp.ThreadedResolver(), self._allowed, field)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, force_close=True, use_dns_cache=False),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "elastic"},
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise InvalidRequest(field, f"its host answered with status {response.status} (redirects are refused)")
            return await self._read(response, field)

    async def _read(self, response: aiohttp.ClientResponse, field: str) -> bytes:
        if (response.content_length or 0) > self._max_bytes:
            raise RequestTooLarge(field, response.content_length or 0, self._max_bytes)
        content = bytearray()
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > self._max_bytes:
                raise RequestTooLarge(field, len(content), self._max_bytes)
        return bytes(content)


class _CheckedResolver(AbstractResolver):
    """Gives only addresses that may be connected to; one that may not refuses the name as a whole."""

    def __init__(self, inner: AbstractResolver, allowed: AllowList, field: str) -> None:
        self._inner, self._allowed, self._field = inner, allowed, field

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host."""
        found = await self._inner.resolve(host, port, family)
        if not all(self._allowed.allows_address(result["host"]) for result in found):
            raise InvalidRequest(self._field, "leads to an address that is not public")
        return found

    async def close(self) -> None:
        """Release the resolver inside."""
        await self._inner.close()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _innermost(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, if it is of a form that does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
