"""What the bodies of one process may hold of memory, and when one of them goes on into a file instead.

Nobody who holds of one waits for what another holds: memory is asked for first, room in files then, and the last
memory at the end.
"""

import asyncio
from types import TracebackType
from typing import Self

from worker.shared_bytes import SharedBytes
from worker.spool import Spool, SpoolFile

# A body up to here takes memory without asking: 256 hostile transfers hold 4 MiB by it.
FREE_BYTES = 16 * 1024
# All larger bodies of one process share this much; one that does not say how long it is takes 512 KiB at first.
SHARED_BYTES = 12 * 1024 * 1024
FIRST_BYTES = 512 * 1024
"""Also the most that one body takes of it while files are of use: a larger one keeps dozens of others waiting."""
PATIENCE_SECONDS = 1.0
"""So long a body waits for memory before it looks for room in a file."""


class BodyMemory(SharedBytes):
    """The memory that all large bodies of one process share.

    ``last`` is for bodies that are read from files to be looked at; and, where there is no file, for those larger
    than all the rest and those that turn out larger than what they took: whoever has of it waits for nothing more.
    """

    def __init__(self, bytes_max: int, last_bytes: int = 0) -> None:
        super().__init__(bytes_max)
        self.last = SharedBytes(last_bytes) if last_bytes else None
        self.whole_bytes = 0
        """Of bodies that have arrived, here or in files, and are looked at one by one."""

    @property
    def decoder_is_behind(self) -> bool:
        """Whether so much has arrived that more of it in files would only cost time."""
        return 2 * self.whole_bytes >= self.bytes_max

    def lease(self, spool: Spool | None = None) -> "Lease":
        """Open an empty lease, which may lead into a file of the spool; it must be released."""
        return Lease(self, spool)


class Lease:
    """What one body holds: of the shared memory, or of the last, or a file."""

    __slots__ = ("_last_bytes", "_memory", "_spool", "_spooled_bytes", "_whole_bytes", "file", "held_bytes")

    def __init__(self, memory: BodyMemory, spool: Spool | None = None) -> None:
        self._memory = memory
        self._spool = spool if memory.last else None
        self._last_bytes = self._spooled_bytes = self._whole_bytes = 0
        self.held_bytes = 0
        """Memory of both kinds."""
        self.file: SpoolFile | None = None

    @property
    def holds_last(self) -> bool:
        """Whether others may wait for what it holds with all that they have."""
        return self._last_bytes > 0

    @property
    def hurried(self) -> bool:
        """Whether others wait, or may wait, for what it holds while it arrives."""
        if self.file is not None and self._spool is not None:
            return self._spool.shared.wanted
        return self._last_bytes > 0

    async def reserve(self, size: int) -> None:
        """Take room for ``size`` bytes in memory, or open a file; more than once only after a release."""
        if self.held_bytes or self.file:
            raise RuntimeError("a lease is taken once")
        too_large = self._memory.last is not None and size > self._memory.bytes_max
        if (
            size > FIRST_BYTES
            and (too_large or not self._memory.decoder_is_behind)
            and await self._open(size)
        ):
            return
        if too_large:
            await self._take_last(size)
        elif self._memory.take_now(size) or await self._wait(size):
            self.held_bytes = size

    def first_bytes(self, size: int) -> int:
        """How much of ``size`` to reserve at first, when that is only the most that a body may come to."""
        return min(size, FIRST_BYTES) if self._memory.last else size

    async def grow(self, size: int) -> None:
        """Take room for ``size`` bytes more, or open a file for all: then ``leave_memory`` once that is there."""
        if self.holds_last or self._memory.last is None:
            raise RuntimeError("a lease grows once, where there is memory for it")
        if not await self._open(self.held_bytes + size):
            await self._take_last(size)

    def leave_memory(self) -> None:
        """Give back what is held of memory: all of the body is in its file."""
        self._shrink_memory(0)

    async def leave_file(self) -> bytes:
        """Go on in the last memory, since the disk does not take more: what has arrived. Raises SpoolError."""
        if self.file is None:
            raise RuntimeError("there is no file")
        await self._take_last(self._spooled_bytes)
        body = await self.file.read_back()
        self._close()
        return body

    async def load(self) -> None:
        """Take the memory into which the file is read when it is looked at."""
        if self.file is not None and not self.holds_last:
            await self._take_last(self.file.size)

    def complete(self, size: int) -> None:
        """The body has arrived and has ``size`` bytes: give back what is held beyond."""
        self._shrink_memory(size)
        if self.file is not None:
            self._shrink_file(size)
        self._whole_bytes = size
        self._memory.whole_bytes += size

    def release(self) -> None:
        """Give everything back. The lease can be used again."""
        self._memory.whole_bytes -= self._whole_bytes
        self._whole_bytes = 0
        self._shrink_memory(0)
        if self.file is not None:
            self._close()

    async def _take_last(self, size: int) -> None:
        if self._memory.last is None:
            raise RuntimeError("there is no last memory")
        await self._memory.last.take(size)
        self._last_bytes = size
        self.held_bytes += size

    async def _wait(self, size: int) -> bool:
        """Wait for memory in the order of asking; False: a file was opened meanwhile."""
        memory, turn = self._memory, self._memory.line_up(size)
        try:
            while not turn.done() and self.file is None:
                await asyncio.wait([turn], timeout=PATIENCE_SECONDS if self._spool else None)
                if not turn.done() and not memory.decoder_is_behind:
                    await self._open(size, wait=False)
        except asyncio.CancelledError:
            memory.leave(turn, size)
            raise
        if self.file is not None:
            memory.leave(turn, size)
        return self.file is None

    async def _open(self, size: int, *, wait: bool = True) -> bool:
        """Open a file, and take its part of what files share; False when there is none to be had."""
        spool = self._spool
        if spool is None or size > spool.shared.bytes_max:
            return False
        if not spool.shared.take_now(size):
            if not wait:
                return False
            await spool.shared.take(size)
        self._spooled_bytes = size
        try:
            self.file = await spool.open()
        finally:
            if self.file is None:
                self._shrink_file(0)
        return self.file is not None

    def _close(self) -> None:
        if self.file is not None and self._spool is not None:
            self._spool.files -= 1
        self.file = None
        self._shrink_file(0)

    def _shrink_file(self, size: int) -> None:
        surplus = self._spooled_bytes - size
        if surplus > 0 and self._spool is not None:
            self._spooled_bytes = size
            self._spool.shared.give_back(surplus)

    def _shrink_memory(self, size: int) -> None:
        surplus = self.held_bytes - size
        if surplus <= 0:
            return
        self.held_bytes = size
        last = min(surplus, self._last_bytes)
        if self._memory.last is not None and last:
            self._last_bytes -= last
            self._memory.last.give_back(last)
        self._memory.give_back(surplus - last)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
