"""Messages reach a replica as the bytes that were sent and are parsed there, where what is wrong with them can be said.

Left to gRPC, one that does not parse ends its call with UNKNOWN and the name of a Python class. In a stream, Serve
takes it for the end: the call is a success, and what comes behind it is never answered.
"""

from collections.abc import AsyncIterable, AsyncIterator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from elastic.errors import InvalidRequest

_M = TypeVar("_M", bound=Message)


def parse(kind: type[_M], message: bytes) -> _M:
    """The message that the bytes hold.

    Raises:
        InvalidRequest: they hold none of this kind.
    """
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise InvalidRequest("message", f"is not a valid {kind.DESCRIPTOR.full_name}") from error


async def parse_stream(kind: type[_M], messages: AsyncIterable[bytes]) -> AsyncIterator[_M]:
    """The same for every message of a stream, which ends at the first that is none.

    Raises:
        InvalidRequest: as in `parse`.
    """
    async for message in messages:
        yield parse(kind, message)
