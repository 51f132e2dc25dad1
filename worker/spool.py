"""Bodies in files while they arrive: what would have to wait for memory goes on there, and is read whole when it is
looked at. Such a file has no name, so the kernel removes it with its last user, however that ended.

Must never write on the event loop, nor take the last of a disk.
"""

import asyncio
import contextlib
import errno
import os
import resource
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from worker.shared_bytes import SharedBytes

UNWRITTEN_BYTES = 8 * 1024 * 1024
"""So much do all files keep in memory together: they are written in parts, the larger the fewer they are. A part of
64 KiB costs as much time on its way to the thread and back as in the kernel.
"""
PART_BYTES_MIN, PART_BYTES_MAX = 32 * 1024, 256 * 1024
PIECES_MAX = 512
"""Or of so many pieces, each of which is an object of fifty bytes besides."""
DISK_BYTES_MIN = 256 * 1024 * 1024
"""So much of the disk a child leaves free for others: a database that finds none stops."""
DESCRIPTORS_MIN = 128
"""So many descriptors stay free for connections."""

Result = TypeVar("Result")

log = structlog.get_logger()


class SpoolError(Exception):
    """The disk does not take, or does not give back, a body. The message is one sentence without its end."""


class Spool:
    """The files of one child: their folder, the bytes that they share, and the one thread that writes them."""

    def __init__(self, folder: Path | None, bytes_max: int) -> None:
        self.folder = str(folder) if folder else None
        """None: the system's for temporary files, if there is one."""
        self.shared = SharedBytes(bytes_max)
        self.files = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        # Its stack is taken now: while a decoder runs under a limit there may be none.
        self._thread.submit(int)
        self._failing = False

    async def open(self) -> "SpoolFile | None":
        """Begin a file for a body whose part of ``shared`` is taken; None when the disk is full, or no use."""
        try:
            file = await self.do(self._make)
        except OSError as error:
            if not self._failing:
                log.warning("spool_unusable", folder=self.folder, error=str(error))
            self._failing = True
            return None
        self._failing = False
        self.files += 1
        return file

    @property
    def part_bytes(self) -> int:
        """What a file keeps in memory before it writes it."""
        return min(PART_BYTES_MAX, max(PART_BYTES_MIN, UNWRITTEN_BYTES // max(1, self.files)))

    async def do(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call ``function`` in the thread, after all that it was asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _make(self) -> "SpoolFile":
        disk = os.statvfs(self.folder or tempfile.gettempdir())
        taken = self.shared.bytes_max - self.shared.free_bytes
        if disk.f_bavail * disk.f_frsize < taken + DISK_BYTES_MIN:
            raise OSError(errno.ENOSPC, "too little is free")
        file = SpoolFile(self)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and file.descriptor > limit - DESCRIPTORS_MIN:
            raise OSError(errno.EMFILE, "too few descriptors are left")
        return file


class SpoolFile:
    """One body. Its file is closed when nobody refers to it any more: a thread may be at it until then."""

    def __init__(self, spool: Spool) -> None:
        """Make the file, in the spool's thread. Raises OSError."""
        self._spool = spool
        self._file = tempfile.TemporaryFile(buffering=0, dir=spool.folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._new: list[bytes] = []
        self._new_bytes = 0
        self._written_bytes = 0

    @property
    def descriptor(self) -> int:
        """Of the file: the lowest number that was free."""
        return self._file.fileno()

    @property
    def size(self) -> int:
        """Bytes of the body so far."""
        return self._written_bytes + self._new_bytes

    def adds_at_once(self, piece: bytes) -> bool:
        """Take the next piece; whether that is all for now. If not, ``write`` is to be called before the next."""
        self._new.append(piece)
        self._new_bytes += len(piece)
        return self._new_bytes < self._spool.part_bytes and len(self._new) < PIECES_MAX

    async def write(self) -> None:
        """Write what is new. Raises SpoolError, with which nothing is lost yet."""
        part = b"".join(self._new)
        try:
            await self._spool.do(self._put, part, self._written_bytes)
        except OSError as error:
            log.warning("spool_unusable", folder=self._spool.folder, error=str(error))
            raise SpoolError(f"a body cannot be written to its file: {error.strerror}") from error
        self._new.clear()
        self._new_bytes = 0
        self._written_bytes += len(part)

    async def read_back(self) -> bytes:
        """The body so far, for whoever goes on in memory. Raises SpoolError."""
        return await self._spool.do(self.read)

    def read(self) -> bytes:
        """The whole body, in any thread, when nothing is added any more. Raises SpoolError."""
        rest = b"".join(self._new)
        try:
            written = self._read(rest)
        except OSError as error:
            raise SpoolError(f"a body cannot be read from its file: {error.strerror}") from error
        if len(written) == self.size:
            return written
        if len(written) != self._written_bytes:
            raise SpoolError("a body cannot be read from its file: it is cut")
        return written + rest

    def _read(self, rest: bytes) -> bytes:
        """What is in the file; ``rest`` goes there first, so that there is no second copy of a large body."""
        size = self._written_bytes
        with contextlib.suppress(OSError):
            self._put(rest, size)
            size += len(rest)
        return os.pread(self._file.fileno(), size, 0)

    def _put(self, part: bytes, start: int) -> None:
        rest = memoryview(part)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, start)
            rest, start = rest[written:], start + written
