"""Room for large pictures: memory for decoding that all children of one worker share, so that more of them at once
do not take more of it. Must be imported before the pool forks: what it holds is one for all.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

UNIT_BYTES = 16 * 1024 * 1024
GATE = 0
"""The lock of whoever gathers units; unit n is lock n."""


class Room:
    """Units of memory as locks on a file without a name. The kernel gives them back, however their holder ends.

    Locks belong to a process, so each child must take room in one thread only.
    """

    def __init__(self) -> None:
        # A file in memory needs no folder that may be written to; it is Linux's own.
        make = getattr(os, "memfd_create", None)
        self._file = make("room") if make else os.dup(tempfile.TemporaryFile().fileno())  # noqa: SIM115

    @contextmanager
    def taken(self, size: int, bytes_max: int) -> Iterator[None]:
        """Wait for ``size`` bytes of ``bytes_max``, or for all of them, and hold them inside the block.

        One at a time gathers what it wants and all others line up behind it: small claims do not starve a large
        one, and nobody who holds units waits for those of somebody who waits.
        """
        units = range(1, 1 + max(1, bytes_max // UNIT_BYTES))
        held: list[int] = []
        try:
            self._lock(GATE)
            try:
                self._gather(units, min(len(units), -(-size // UNIT_BYTES)), held)
            finally:
                self._unlock(GATE)
            yield
        finally:
            for unit in held:
                self._unlock(unit)

    def _gather(self, units: range, wanted: int, held: list[int]) -> None:
        """Take what is free, and then wait for one unit after the other."""
        for wait in (False, True):
            for unit in units:
                if len(held) < wanted and unit not in held and self._lock(unit, wait=wait):
                    held.append(unit)

    def _lock(self, number: int, *, wait: bool = True) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except (BlockingIOError, PermissionError):  # POSIX leaves the choice to the system.
            return False
        return True

    def _unlock(self, number: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)


ROOM = Room()
