"""What may hang in a thread, and since when: nothing but the end of the process can end such a thread.

Counts time only; what is done about it is the caller's.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class Watchdog:
    """Calls under way with their deadlines. Safe to be used by many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._running: dict[int, Timed] = {}

    @contextmanager
    def timing(self, work: Work, seconds_max: float) -> Iterator[None]:
        """Count the body as under way: it is overdue after ``seconds_max``."""
        number = next(self._numbers)
        self._running[number] = Timed(work, seconds_max, self._clock() + seconds_max)
        try:
            yield
        finally:
            del self._running[number]

    def running(self) -> set[Work]:
        """What is under way."""
        return {timed.work for timed in list(self._running.values())}

    def overdue(self) -> Timed | None:
        """A call that has taken longer than it may, if there is one."""
        now = self._clock()
        return next((timed for timed in list(self._running.values()) if timed.deadline < now), None)
