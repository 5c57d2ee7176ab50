"""Connections that are no use to anybody: half-open, slow, or full of what is no HTTP/2."""

import asyncio
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
HEADERS_OF_16_KIB = b"\0\x40\0\x01\x04\0\0\0\x01"
"""The head of a frame whose content never comes, or byte by byte."""

HALF_OPEN: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "half of a preface": (PREFACE[:10], b""),
    "a preface and nothing more": (PREFACE + SETTINGS, b""),
    "headers, byte by byte": (PREFACE + SETTINGS + HEADERS_OF_16_KIB, b"a"),
}
"""What is sent at once, and then again and again."""

GARBAGE: dict[str, bytes] = {
    "HTTP/1.1": b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n" * 2,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 60,
    "frames of 0xff": PREFACE + b"\xff" * 64,
    "settings of one byte": PREFACE + b"\0\0\x01\x04\0\0\0\0\0a",
    "headers of stream 0": PREFACE + SETTINGS + b"\0\0\x01\x01\x05\0\0\0\0a",
    "headers that do not decompress": PREFACE + SETTINGS + b"\0\0\x08\x01\x05\0\0\0\x01" + b"\xff" * 8,
    "data of a stream that is not open": PREFACE + SETTINGS + b"\0\0\x01\0\x01\0\0\0\x07a",
    "a window that grows by 0": PREFACE + SETTINGS + b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",
    "a continuation of nothing": PREFACE + SETTINGS + b"\0\0\x01\x09\x04\0\0\0\x01a",
}
"""What a gRPC port may be sent by mistake or malice."""


async def closed_after_s(host: str, port: int, sent: bytes, again: bytes = b"", limit_s: float = 60.0) -> float | None:
    """Seconds until the server closes a connection on which this is sent; None if it does not within the limit."""
    reader, writer = await asyncio.open_connection(host, port)
    began_s = time.monotonic()
    writer.write(sent)
    try:
        while time.monotonic() - began_s < limit_s:
            try:
                if not await asyncio.wait_for(reader.read(4096), 0.5):
                    return time.monotonic() - began_s
            except TimeoutError:
                writer.write(again)
        return None
    except ConnectionError:  # closed with something of ours unread
        return time.monotonic() - began_s
    finally:
        writer.close()
