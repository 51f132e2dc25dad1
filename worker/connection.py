"""What one connection may carry: few bytes beside each answer's body, and none between two answers.

aiohttp's own bounds are on parts: a line, a header, a chunk's size. Nothing in it ends a flood of parts.
"""

import asyncio
import functools
import select
from asyncio.sslproto import SSLProtocol
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import set_exception

# An eighth of the body comes on top: chunks of 50 bytes, while servers send thousands at once.
FRAMING_BYTES = 1024 * 1024
# What is read at once; a connection holds at most twice that of a body that nobody has taken yet. asyncio's own
# quarter of a megabyte would be more, in 256 connections that wait for memory, than all bodies together. More than
# the longest field that is accepted: aiohttp measures what it was given at once, and would wait for the end of a
# longer one in a trailer for ever.
READ_BYTES = 20 * 1024
FIELD_BYTES_MAX = READ_BYTES - 4 * 1024

# Every TLS connection has a buffer of this size from its beginning to its end, by asyncio a quarter of a megabyte:
# 64 MiB in 256 of them. A TLS record has 16 KiB at most.
RECORD_BYTES = 16 * 1024
SSLProtocol.max_size = RECORD_BYTES


class FloodError(aiohttp.ClientPayloadError):
    """An answer has more bytes beside its body than any image can need."""


class BoundedConnector(aiohttp.TCPConnector):
    """Connections that end when an answer has more on the wire beside its body than a body could need:
    interim answers, header, chunk sizes and their extensions, trailers.
    """

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self._factory = functools.partial(_BoundedHandler, self._loop)  # type: ignore[assignment]

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where connections to a host go: as it is looked up for them, and remembered. Raises OSError."""
        return [answer["host"] for answer in await self._resolve_host(host, port)]

    async def _get(self, *arguments: Any) -> Any:
        """Find an idle connection, and close those on which something came unasked: a response that nobody
        waited for would be taken for the next answer.
        """
        while (connection := await super()._get(*arguments)) is not None and _is_spoilt(connection.protocol):
            connection.close()
        return connection


class _BoundedHandler(ResponseHandler):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._arrived = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and read in small pieces."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES
        if hasattr(transport, "set_read_buffer_limits"):  # TLS keeps a store of its own.
            transport.set_read_buffer_limits(high=RECORD_BYTES)

    def set_response_params(self, **named: Any) -> None:
        """Begin with the next answer."""
        self._arrived = 0
        super().set_response_params(**named)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, and give up when too much of it is no body."""
        self._arrived += len(data)
        super().data_received(data)
        body_bytes = self._payload.total_bytes if self._payload is not None else 0
        if self._arrived - body_bytes > FRAMING_BYTES + body_bytes // 8:
            error = FloodError(f"more than {FRAMING_BYTES} bytes arrived beside the body")
            if self._payload is not None:
                set_exception(self._payload, error)
            self.set_exception(error)
            if self.transport is not None:
                self.transport.abort()  # ``self.abort`` would forget the error.


def _is_spoilt(protocol: ResponseHandler | None) -> bool:
    """Whether anything waits to be read, parsed already or not: a message, a part of one, the end."""
    if protocol is None or protocol.transport is None or protocol.should_close:
        return True
    socket = protocol.transport.get_extra_info("socket")
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return bool(poll.poll(0))
