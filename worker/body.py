"""The body of one response: its bounds, its content coding and the memory it may take. It never connects."""

import asyncio
import collections
import io
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self

from models.outcomes import Reason
from worker.errors import PictureError, TransferError
from worker.memory import LARGE_BYTES

PIECE_BYTES = 64 * 1024
# A body up to here takes memory without asking: 256 hostile transfers hold 4 MiB by it.
FREE_BYTES = 16 * 1024
# All larger bodies of one process share this much; one that does not say how long it is takes 512 KiB at first.
SHARED_BYTES = 12 * 1024 * 1024
FIRST_BYTES = 512 * 1024
# Who holds the last memory, for which others wait, must be so fast, in bytes a second.
LAST_RATE_MIN = 32 * 1024
LAST_SILENCE_SECONDS = 3.0
"""And never silent for longer."""
RATE_GRACE_SECONDS = 10.0
# Members of a gzip body. One is the rule; each costs a decompressor, and an empty one takes 20 bytes.
MEMBERS_MAX = 1000
NEW_PIECES_MAX = 512

# Labels that servers send although they name no compression.
_UNCODED = frozenset({"", "identity", "none", "binary", "utf-8", "aws-chunked"})
_CODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


class Source(Protocol):
    """What a body is read from."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The response header."""
        ...

    async def read_some(self) -> bytes:
        """Wait for the next bytes; none means the end."""
        ...


class UnknownCodingError(ValueError):
    """The Content-Encoding is none that we decode."""


class BodyMemory:
    """The memory that all large bodies of one process share, given out in the order of asking.

    ``last`` is for bodies larger than all of it, and for those that turn out larger than what they took: whoever
    has of it waits for nothing more.
    """

    def __init__(self, bytes_max: int, last_bytes: int = 0) -> None:
        self.bytes_max = self.free_bytes = bytes_max
        self.last = BodyMemory(last_bytes) if last_bytes else None
        self._waiting: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    def lease(self) -> "Lease":
        """Open an empty lease; it must be released."""
        return Lease(self)

    async def take(self, size: int) -> None:
        """Take ``size`` bytes, waiting until they are free."""
        if not self._waiting and size <= self.free_bytes:
            self.free_bytes -= size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # The turn may have come in the same moment; then what was given goes back. A turn that was
            # cancelled is passed over by whoever gives back next, here at once.
            self.give_back(0 if turn.cancelled() else size)
            raise

    def give_back(self, size: int) -> None:
        """Return bytes and wake whoever can go on."""
        self.free_bytes += size
        while self._waiting:
            taken, turn = self._waiting[0]
            if not turn.cancelled():
                if taken > self.free_bytes:
                    return
                self.free_bytes -= taken
                turn.set_result(None)
            self._waiting.popleft()


class Lease:
    """What one body holds of the shared memory. It is taken once, and once more from another store: no two can
    deadlock.
    """

    __slots__ = ("_last_bytes", "_memory", "held_bytes")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._last_bytes = 0
        self.held_bytes = 0

    @property
    def holds_last(self) -> bool:
        """Whether others may wait for what it holds with all that they have."""
        return self._last_bytes > 0

    async def reserve(self, size: int) -> None:
        """Take ``size`` bytes; more than once only after a release."""
        if self.held_bytes:
            raise RuntimeError("a lease is taken once")
        if self._memory.last is not None and size > self._memory.bytes_max:
            await self._memory.last.take(size)
            self._last_bytes = size
        else:
            await self._memory.take(size)
        self.held_bytes = size

    def first_bytes(self, size: int) -> int:
        """How much of ``size`` to reserve at first, when that is only the most that a body may come to."""
        return min(size, FIRST_BYTES) if self._memory.last else size

    async def grow(self, size: int) -> None:
        """Take ``size`` bytes more, the last ones: few bodies may have them at a time."""
        if self._last_bytes or self._memory.last is None:
            raise RuntimeError("a lease grows once, where there is memory for it")
        await self._memory.last.take(size)
        self._last_bytes = size
        self.held_bytes += size

    def shrink_to(self, size: int) -> None:
        """Give back what is held over ``size`` bytes."""
        surplus = self.held_bytes - size
        if surplus <= 0:
            return
        self.held_bytes = size
        last = min(surplus, self._last_bytes)
        if self._memory.last is not None and last:
            self._last_bytes -= last
            self._memory.last.give_back(last)
        self._memory.give_back(surplus - last)

    def release(self) -> None:
        """Give everything back. The lease can be used again."""
        self.shrink_to(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class ContentDecoder:
    """Undoes gzip or deflate (RFC 9110, section 8.4.1), at most PIECE_BYTES at once: a bomb stays small."""

    __slots__ = ("_coding", "_ended", "_head", "_inflater", "_members")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflater: zlib._Decompress | None = None
        self._head = b""
        self._members = 0
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what ``data`` decodes to. Raises zlib.error."""
        data = self._head + data
        self._head = b""
        while not self._ended:
            if self._inflater is None:
                if len(data) < 2:
                    self._head = data
                    return
                self._inflater = self._next_member(data)
                continue
            piece = self._inflater.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            if self._inflater.eof:
                data = self._inflater.unused_data
                self._inflater = None
                self._ended = self._coding != "gzip"
                continue
            data = self._inflater.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return

    def finish(self) -> None:
        """Raise zlib.error when the coded body was cut."""
        unread = not self._members and (self._coding != "gzip" or self._head)
        if not self._ended and (self._inflater is not None or unread):
            raise zlib.error("the coded body ends early")

    def _next_member(self, head: bytes) -> "zlib._Decompress | None":
        """Begin, or go on: gzip may have several members, and anything else behind one of them is padding."""
        self._ended = self._members > 0 and not head.startswith(b"\x1f\x8b")
        self._members += 1
        if self._members > MEMBERS_MAX:
            raise zlib.error(f"more than {MEMBERS_MAX} members")
        return None if self._ended else zlib.decompressobj(self._window_bits(head))

    def _window_bits(self, head: bytes) -> int:
        """Deflate means the zlib format, but some servers send the bare stream: look at its two bytes."""
        if self._coding == "gzip":
            return 16 + zlib.MAX_WBITS
        is_zlib = head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


def make_decoder(content_encoding: str) -> ContentDecoder | None:
    """Find the decoder for a Content-Encoding header, None when there is nothing to undo.

    Raises UnknownCodingError.
    """
    label = content_encoding.strip().lower()
    if label in _UNCODED:
        return None
    if label not in _CODINGS:
        raise UnknownCodingError(f"Content-Encoding {label[:60]} is not understood")
    return ContentDecoder(_CODINGS[label])


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
        self._size = 0
        self._started = 0.0
        self.deadline: asyncio.Timeout | None = None
        self.wire_bytes = 0
        self._counted = 0

    async def read(self, source: Source) -> bytes:
        """Read to the end and undo the content coding.

        Raises TransferError (``too_large``, ``too_slow``, ``protocol``) or PictureError (``not_an_image``), and
        whatever the source raises.
        """
        length = _content_length(source.headers)
        if length is not None and length > self._bytes_max:
            raise self._too_large()
        decoder = _decoder_for(source.headers)
        expected = self._lease.first_bytes(self._bytes_max) if decoder or length is None else length
        pieces = Pieces()
        self._started = self._clock()
        while chunk := await self._next(source):
            self._count(chunk, self._clock() - self._started)
            if decoder is None:
                await self._grow(len(chunk), expected)
                pieces.add(chunk)
                continue
            for piece in _decoded(decoder, chunk):
                await self._grow(len(piece), expected)
                pieces.add(piece)
        if decoder is not None:
            _finish(decoder)
        self._lease.shrink_to(self._size)
        return pieces.whole()

    async def _next(self, source: Source) -> bytes:
        if not self._lease.holds_last:
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
        arrived = self.wire_bytes - self._counted
        if elapsed_seconds > RATE_GRACE_SECONDS and arrived < self._rate_min * elapsed_seconds:
            raise TransferError(Reason.TOO_SLOW, f"{arrived} bytes arrived in {elapsed_seconds:.0f} seconds")

    async def _grow(self, size: int, expected: int) -> None:
        self._size += size
        if self._size > self._bytes_max:
            raise self._too_large()
        if self._size > FREE_BYTES and not self._lease.held_bytes:
            await self._wait(self._lease.reserve(expected))
            self._hurry()
        if self._size > self._lease.held_bytes > 0:
            await self._wait(self._lease.grow(self._bytes_max - self._lease.held_bytes))
            self._hurry()

    def _hurry(self) -> None:
        """Who holds the last memory must be fast from then on."""
        if self._lease.holds_last and self._rate_min:
            self._started, self._counted = self._clock(), self.wire_bytes
            self._rate_min = max(self._rate_min, LAST_RATE_MIN)

    async def _wait(self, taking: Awaitable[None]) -> None:
        """Wait for memory with every clock stopped: that it is scarce here is not the server's fault."""
        began, loop = self._clock(), asyncio.get_running_loop()
        ends_at = self.deadline.when() if self.deadline else None
        if self.deadline is None or ends_at is None:
            await taking
        else:
            left_seconds = ends_at - loop.time()
            self.deadline.reschedule(None)
            await taking
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
