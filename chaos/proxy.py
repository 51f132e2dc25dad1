"""A small TCP proxy on loopback in front of one server: it passes bytes on, delays, swallows or cuts them.

Knows no protocol beyond the bytes it is told to wait for. Its loop runs in a thread of its own.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from chaos.processes import ChaosError

PIECE_BYTES = 64 * 1024
SECONDS_MAX = 10
HOLD_SECONDS = 0.01
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: closing sends RST."""

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Trap:
    """Stops the first connection whose client sends ``pattern``; ``who`` must stand in what it sent first.

    With ``answered`` the bytes reach the server and its answer is swallowed; without, they are not passed on.
    ``skip`` so many matches before. The connection is cut, or ``held`` silent until the trap is taken away; then
    what was held back goes on its way if nobody hung up. ``port`` is the client's, by which its process is found.
    """

    pattern: bytes
    who: bytes = b""
    answered: bool = True
    held: bool = False
    skip: int = 0
    port: int = 0
    sprung: threading.Event = field(default_factory=threading.Event)
    gone: bool = False

    def wait(self, seconds: float) -> None:
        """Wait until it has sprung. Raises ChaosError when nothing came for ``seconds``."""
        if not self.sprung.wait(seconds):
            raise ChaosError(f"nobody sent {self.pattern!r} for {seconds:g} s")


@dataclass(slots=True, eq=False)
class Link:
    """One client's connection and ours to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    opening: bytes = b""
    trap: Trap | None = None

    def cut(self) -> None:
        """Reset both sides."""
        for writer in (self.client, self.server):
            if writer is None:
                continue
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                if raw is not None and raw.family != socket.AF_UNIX:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class Proxy:
    """A context manager: connections to ``port`` of 127.0.0.1 go to the Unix socket ``target``."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.port = 0
        self._links: set[Link] = set()
        self._refusing = False
        self._latency_seconds = 0.0
        self._traps: list[Trap] = []

    def __enter__(self) -> Self:
        listening: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listening)), name="proxy", daemon=True
        )
        self._thread.start()
        self.port = listening.result(SECONDS_MAX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(SECONDS_MAX)

    def reset(self) -> int:
        """Cut every connection there is, with RST; how many."""
        return self._call(self._cut_all)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Cut every connection, and every new one as soon as it is made, while the context is open."""
        self._refusing = True
        self.reset()
        try:
            yield
        finally:
            self._refusing = False

    @contextlib.contextmanager
    def black_hole(self) -> Iterator[None]:
        """Accept connections and pass nothing on, in neither direction, while the context is open; cut them then.

        No router remembers a connection after minutes of silence.
        """
        self._call(self._open.clear)
        try:
            yield
        finally:
            self.reset()
            self._call(self._open.set)

    @contextlib.contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """Delay every piece of bytes, in both directions, while the context is open."""
        self._latency_seconds = seconds
        try:
            yield
        finally:
            self._latency_seconds = 0.0

    @contextlib.contextmanager
    def trap(
        self, pattern: bytes, *, who: bytes = b"", answered: bool = True, held: bool = False, skip: int = 0
    ) -> Iterator[Trap]:
        """Set a Trap while the context is open, and give it."""
        trap = Trap(pattern, who, answered, held, skip)
        self._call(lambda: self._traps.append(trap))
        try:
            yield trap
        finally:
            self._call(lambda: self._take_away(trap))

    def _call(self, function: Callable[[], Result]) -> Result:
        """Call a function in the loop's thread and return what it returns."""
        done: Future[Result] = Future()

        def call() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread.
                done.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return done.result(SECONDS_MAX)

    def _cut_all(self) -> int:
        links = list(self._links)
        for link in links:
            link.cut()
        return len(links)

    async def _serve(self, listening: "Future[int]") -> None:
        self._loop, self._leave, self._open = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        listening.set_result(server.sockets[0].getsockname()[1])
        await self._leave.wait()
        server.close()
        self._cut_all()
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(writer)
        self._links.add(link)
        try:
            if self._refusing:
                return
            await self._open.wait()
            answers, link.server = await asyncio.open_unix_connection(str(self.target))
            pumps = [self._pump(link, reader, link.server, asked=True)]
            pumps.append(self._pump(link, answers, writer, asked=False))
            tasks = [asyncio.ensure_future(pump) for pump in pumps]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        except OSError:
            return  # The server is down: its client sees a connection that is closed at once.
        finally:
            self._links.discard(link)
            link.cut()

    async def _pump(
        self, link: Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asked: bool
    ) -> None:
        """Pass bytes on until either side ends or a trap cuts the connection."""
        while piece := await source.read(PIECE_BYTES):
            await self._open.wait()
            if self._latency_seconds:
                await asyncio.sleep(self._latency_seconds)
            if asked and link.trap is None:
                link.trap = self._sprung(link, piece)
            trap = link.trap
            if trap is not None and trap.answered is not asked:
                # These are the bytes that go no further: the client's, or the server's answer to them.
                await self._hold(trap, source)
                if not trap.held or source.at_eof():
                    return
                link.trap = None
            target.write(piece)
            await target.drain()

    async def _hold(self, trap: Trap, source: asyncio.StreamReader) -> None:
        """Say that a trap has sprung, and be silent until it is taken away or the other side hangs up."""
        trap.sprung.set()
        while trap.held and not trap.gone and not source.at_eof():  # noqa: ASYNC110 - no event for this end.
            await asyncio.sleep(HOLD_SECONDS)

    def _sprung(self, link: Link, piece: bytes) -> Trap | None:
        """The trap that these bytes of a client spring, if any; nobody else springs it then."""
        link.opening = link.opening or piece
        for trap in self._traps:
            if trap.pattern not in piece or trap.who not in link.opening:
                continue
            if trap.skip:
                trap.skip -= 1
                continue
            self._traps.remove(trap)
            trap.port = link.client.get_extra_info("peername")[1]
            return trap
        return None

    def _take_away(self, trap: Trap) -> None:
        trap.gone = True
        if trap in self._traps:
            self._traps.remove(trap)
