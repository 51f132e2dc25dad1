"""A real HTTP proxy on loopback for tests: absolute-form requests and CONNECT, with a password if it has one."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping

PIECE_BYTES = 65536


class SmallProxy:
    """Keeps the head of each request. ``hosts`` says where a name leads, as the proxy's own lookup would."""

    def __init__(self, hosts: Mapping[str, str], password: str | None) -> None:
        self.hosts = hosts
        self.heads: list[bytes] = []
        self.port = 0
        self._expected = password and b"Basic " + base64.b64encode(password.encode())

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a tunnel, or requests for one server until either side goes."""
        server: asyncio.StreamWriter | None = None
        copying: asyncio.Task[None] | None = None
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                method, target, _ = head.split(b" ", 2)
                if self._expected and self._expected not in head:
                    writer.write(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n")
                    continue
                authority, _, path = target.removeprefix(b"http://").partition(b"/")
                if server is None:
                    host, _, port = authority.decode().rpartition(":")
                    answers, server = await asyncio.open_connection(self.hosts.get(host, host), int(port))
                    if method == b"CONNECT":
                        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                    copying = asyncio.ensure_future(_copy(answers, writer))
                if method == b"CONNECT":
                    await _copy(reader, server)
                    break
                fields = [line for line in head.split(b"\r\n")[1:] if not line.startswith(b"Proxy-")]
                server.write(b"\r\n".join([b"%s /%s HTTP/1.1" % (method, path), *fields]))
        except (OSError, asyncio.IncompleteReadError):
            writer.write(b"HTTP/1.1 502 Gone\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        finally:
            if copying is not None:
                copying.cancel()
            for one in (writer, server):
                if one is not None:
                    one.close()
                    with contextlib.suppress(OSError, asyncio.CancelledError):
                        await one.wait_closed()


async def _copy(source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(PIECE_BYTES):
            drain.write(piece)
            await drain.drain()
    drain.close()


@contextlib.asynccontextmanager
async def small_proxy(
    hosts: Mapping[str, str], password: str | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[SmallProxy]:
    """Serve on a free loopback port while the block runs."""
    proxy = SmallProxy(hosts, password)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(proxy.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
