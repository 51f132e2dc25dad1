"""What may hang in a thread, and since when: nothing but the end of the process can end such a thread.

Counts time only; what is done about it is the caller's.
"""

import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum


class Work(StrEnum):
    """What a thread of a child may be occupied by for long."""

    DECODE = "decoding a picture"
    STORE = "the store"


@dataclass(frozen=True, slots=True)
class Timed:
    """A call under way, and when it is overdue by the watchdog's clock."""

    work: Work
    seconds_max: float
    deadline: float


class _Timing:
    """A class, not a generator: every picture has two of it."""

    __slots__ = ("_number", "_running", "_timed")

    def __init__(self, running: dict[int, Timed], number: int, timed: Timed) -> None:
        self._running = running
        self._number = number
        self._timed = timed

    def __enter__(self) -> None:
        self._running[self._number] = self._timed

    def __exit__(self, *_: object) -> None:
        del self._running[self._number]


class Watchdog:
    """Calls under way with their deadlines. Safe to be used by many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._running: dict[int, Timed] = {}

    def timing(self, work: Work, seconds_max: float) -> AbstractContextManager[None]:
        """Count the body as under way: it is overdue after ``seconds_max``."""
        return _Timing(
            self._running, next(self._numbers), Timed(work, seconds_max, self._clock() + seconds_max)
        )

    def running(self) -> set[Work]:
        """What is under way."""
        return {timed.work for timed in list(self._running.values())}

    def overdue(self) -> Timed | None:
        """A call that has taken longer than it may, if there is one."""
        now = self._clock()
        return next((timed for timed in list(self._running.values()) if timed.deadline < now), None)
