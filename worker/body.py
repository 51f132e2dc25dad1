"""The body of one response: its bounds, its content coding and where it is kept. It never connects."""

import asyncio
import io
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Protocol

from models.outcomes import Reason
from worker.body_memory import FREE_BYTES, Lease
from worker.coding import ContentDecoder, UnknownCodingError, make_decoder
from worker.errors import PictureError, TransferError
from worker.memory import LARGE_BYTES
from worker.spool import SpoolError

# Who holds memory or room in files for which others wait must be so fast, in bytes a second.
LAST_RATE_MIN = 32 * 1024
LAST_SILENCE_SECONDS = 3.0
"""And never silent for longer."""
RATE_GRACE_SECONDS = 10.0
NEW_PIECES_MAX = 512


class Source(Protocol):
    """What a body is read from."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The response header."""
        ...

    async def read_some(self) -> bytes:
        """Wait for the next bytes; none means the end."""
        ...


class Pieces:
    """A body as it comes. Joining a large one would take its size twice, so it is one buffer that grows at times;
    very many small pieces go there as well, for each is an object of fifty bytes besides.
    """

    __slots__ = ("_buffer", "_new", "_new_bytes")

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._new: list[bytes] = []
        self._new_bytes = 0

    def add(self, piece: bytes) -> None:
        """Take the next piece."""
        self._new.append(piece)
        self._new_bytes += len(piece)
        if self._new_bytes >= LARGE_BYTES or len(self._new) == NEW_PIECES_MAX:
            self._write()

    def whole(self) -> bytes:
        """The body, without a copy if it is large or came in one piece."""
        if self._buffer.tell():
            self._write()
            return self._buffer.getvalue()
        return self._new[0] if len(self._new) == 1 else b"".join(self._new)

    def _write(self) -> None:
        self._buffer.writelines(self._new)
        self._new.clear()
        self._new_bytes = 0


class BodyReader:
    """Reads one body within its bounds. ``wire_bytes`` counts what arrived, also when reading fails."""

    __slots__ = (
        "_bytes_max",
        "_clock",
        "_counted",
        "_lease",
        "_pieces",
        "_rate_min",
        "_size",
        "_started",
        "deadline",
        "wire_bytes",
    )

    def __init__(self, *, bytes_max: int, rate_min: int, lease: Lease, clock: Callable[[], float]) -> None:
        self._bytes_max = bytes_max
        self._rate_min = rate_min
        self._lease = lease
        self._clock = clock
        self._pieces = Pieces()
        self._size = 0
        self._started = 0.0
        self.deadline: asyncio.Timeout | None = None
        self.wire_bytes = 0
        self._counted = 0

    async def read(self, source: Source) -> bytes:
        """Read to the end and undo the content coding: the body, or nothing when it is in the lease's file.

        Raises TransferError (``too_large``, ``too_slow``, ``protocol``) or PictureError (``not_an_image``),
        SpoolError, and whatever the source raises.
        """
        length = _content_length(source.headers)
        if length is not None and length > self._bytes_max:
            raise self._too_large()
        decoder = _decoder_for(source.headers)
        expected = self._lease.first_bytes(self._bytes_max) if decoder or length is None else length
        self._started = self._clock()
        while chunk := await self._next(source):
            self._count(chunk, self._clock() - self._started)
            if decoder is None:
                await self._keep(chunk, expected)
                continue
            for piece in _decoded(decoder, chunk):
                await self._keep(piece, expected)
        if decoder is not None:
            _finish(decoder)
        self._lease.complete(self._size)
        return self._pieces.whole()

    async def _next(self, source: Source) -> bytes:
        if not self._lease.hurried:
            return await source.read_some()
        try:
            async with asyncio.timeout(LAST_SILENCE_SECONDS):
                return await source.read_some()
        except TimeoutError:
            detail = f"nothing of a large body arrived for {LAST_SILENCE_SECONDS:g} seconds"
            raise TransferError(Reason.TOO_SLOW, detail) from None

    def _count(self, chunk: bytes, elapsed_seconds: float) -> None:
        self.wire_bytes += len(chunk)
        if self.wire_bytes > self._bytes_max:
            raise self._too_large()
        if elapsed_seconds <= RATE_GRACE_SECONDS:
            return
        arrived, rate_min = self.wire_bytes - self._counted, self._rate_min
        if rate_min and self._lease.hurried:
            rate_min = max(rate_min, LAST_RATE_MIN)
        if arrived < rate_min * elapsed_seconds:
            raise TransferError(Reason.TOO_SLOW, f"{arrived} bytes arrived in {elapsed_seconds:.0f} seconds")

    async def _keep(self, piece: bytes, expected: int) -> None:
        """Put a piece where the body is, and the body where there is room for it."""
        lease = self._lease
        self._size += len(piece)
        if self._size > self._bytes_max:
            raise self._too_large()
        if self._size > FREE_BYTES and self._size > lease.held_bytes and lease.file is None:
            await self._wait(self._find_room(expected))
            if lease.file is not None or lease.holds_last:
                self._started, self._counted = self._clock(), self.wire_bytes
        if lease.file is None:
            self._pieces.add(piece)
        elif lease.file.adds_at_once(piece):
            return
        else:
            await self._wait(self._write())

    async def _find_room(self, expected: int) -> None:
        """Let the body be counted from here on, or lead it into a file."""
        if self._lease.held_bytes:
            await self._lease.grow(self._bytes_max - self._lease.held_bytes)
        else:
            await self._lease.reserve(expected)
        if self._lease.file is not None:
            body, self._pieces = self._pieces.whole(), Pieces()
            if not self._lease.file.adds_at_once(body):
                await self._write()
        if self._lease.file is not None:
            self._lease.leave_memory()

    async def _write(self) -> None:
        """Write what the file was given; where the disk takes no more, go on in memory."""
        if self._lease.file is None:
            return
        try:
            await self._lease.file.write()
        except SpoolError:
            self._pieces.add(await self._lease.leave_file())

    async def _wait(self, waiting: Awaitable[None]) -> None:
        """Wait for memory or a disk with every clock stopped: that they are scarce is not the server's fault."""
        began, loop = self._clock(), asyncio.get_running_loop()
        ends_at = self.deadline.when() if self.deadline else None
        if self.deadline is None or ends_at is None:
            await waiting
        else:
            left_seconds = ends_at - loop.time()
            self.deadline.reschedule(None)
            await waiting
            self.deadline.reschedule(loop.time() + left_seconds)
        self._started += self._clock() - began

    def _too_large(self) -> TransferError:
        return TransferError(Reason.TOO_LARGE, f"the body is larger than {self._bytes_max} bytes")


def _content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _decoder_for(headers: Mapping[str, str]) -> ContentDecoder | None:
    try:
        return make_decoder(headers.get("Content-Encoding", ""))
    except UnknownCodingError as error:
        raise PictureError(Reason.NOT_AN_IMAGE, str(error)) from error


def _decoded(decoder: ContentDecoder, chunk: bytes) -> Iterator[bytes]:
    try:
        yield from decoder.feed(chunk)
    except zlib.error as error:
        raise TransferError(Reason.PROTOCOL, f"the content coding is broken: {error}") from error


def _finish(decoder: ContentDecoder) -> None:
    try:
        decoder.finish()
    except zlib.error as error:
        raise TransferError(Reason.PROTOCOL, f"the content coding is broken: {error}") from error
