"""A raw HTTP server on loopback for tests: it says exactly the bytes that a test wants, good or bad."""

import asyncio
import contextlib
import functools
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from models.settings import Settings

# Self-signed for 127.0.0.1 and images.test, with its key; valid until 2120. Nothing but tests trusts it.
CERTIFICATE = Path(__file__).with_name("loopback.pem")
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)

Write = Callable[[bytes], Awaitable[None]]
Answer = Callable[["Request", Write], Awaitable[None]]


class Request:
    """One request as received: its target byte for byte, and its header in lower case."""

    def __init__(self, head: bytes) -> None:
        line, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.method, self.target, _ = line.split(" ", 2)
        self.headers = {
            name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)
        }


class Server:
    """Counts its connections and keeps its requests."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connections = 0
        self.requests: list[Request] = []
        self.closed_by_peer = asyncio.Event()
        self.origin = ""
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until either side goes. An answer that raises ConnectionResetError resets the connection."""
        self.connections += 1
        try:
            while True:
                request = Request(await reader.readuntil(b"\r\n\r\n"))
                self.requests.append(request)
                await self._answer(request, functools.partial(_write, writer))
                if writer.is_closing():
                    break
        except (asyncio.IncompleteReadError, BrokenPipeError):
            self.closed_by_peer.set()
        except ConnectionResetError:
            self.closed_by_peer.set()
            writer.transport.abort()
        except EOFError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    # By TLS, ``drain`` neither waits nor raises until the loop has told that the connection is lost.
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serve(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve on a free loopback port. The connections left open are ended with the block."""
    server = Server(answer)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    server.origin = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def tls_server() -> ssl.SSLContext:
    """Make the server's side of TLS with the self-signed certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def response(body: bytes = b"", status: int = 200, headers: dict[str, str] | None = None) -> bytes:
    """Compose a correct response. A Content-Length in ``headers`` replaces the right one."""
    fields = {"Content-Length": str(len(body)), "Content-Type": "image/png", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode("latin-1") + body


def always(data: bytes, *, then_close: bool = False) -> Answer:
    """Answer every request with the same bytes."""

    async def answer(_: Request, write: Write) -> None:
        await write(data)
        if then_close:
            raise EOFError

    return answer


def by_path(answers: dict[str, bytes]) -> Answer:
    """Answer by the request's target; anything else is 404."""

    async def answer(request: Request, write: Write) -> None:
        await write(answers.get(request.target, response(b"", 404)))

    return answer


def pieces(*parts: bytes, pause: float = 0.0, then: Exception | None = None) -> Answer:
    """Answer with parts one after the other; then raise what ends the connection."""

    async def answer(_: Request, write: Write) -> None:
        for part in parts:
            await write(part)
            await asyncio.sleep(pause)
        if then is not None:
            raise then

    return answer


def endless(head: bytes, part: bytes, pause: float = 0.0) -> Answer:
    """Answer with a head and then the same part for ever."""

    async def answer(_: Request, write: Write) -> None:
        await write(head)
        while True:
            await write(part)
            await asyncio.sleep(pause)

    return answer


def loopback_settings(**overrides: Any) -> Settings:
    """Make settings that allow loopback and are impatient."""
    values = {
        "allowed_networks": LOOPBACK,
        "transfer_seconds_max": 10.0,
        "connect_seconds_max": 5.0,
        "read_seconds_max": 5.0,
        "transfer_attempts": 1,
    }
    return Settings(**(values | overrides))


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(_await(test(*arguments, **named)))

    return run


async def _await(test: Awaitable[None]) -> None:
    await test
