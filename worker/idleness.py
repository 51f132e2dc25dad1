"""Whether a chunk mostly waits, for its hosts or for stragglers, so that another is a better use of its child."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from worker.transfers import Transfers

PARK_SECONDS = 5.0
"""A chunk in which nothing may start for longer is parked; it comes back as soon as something may."""
BUSY_MIN = 0.5
"""Transfers at once, on average, under which a chunk mostly waits."""
WEIGHT = 0.04
LOOK_SECONDS = 2.0


STRAGGLERS_MAX = 16
"""So few transfers leave a child to idle, where hundreds could run."""
TAIL_SECONDS = 1.0


class Tail:
    """When another chunk may begin beside what is left of one, tick by tick."""

    def __init__(self, transfers: Transfers[Any], at_once: int) -> None:
        self._transfers = transfers
        self._half = at_once // 2
        self._since = float("inf")
        self._asked_at = 0.0

    def half_free(self, running: int) -> bool:
        """Whether half of a child's transfers, of which ``running`` run, could be another chunk's, and that was not
        said a moment ago.
        """
        few_left = 0 < self._transfers.stragglers <= self._half and running <= self._half
        return few_left and time.monotonic() >= self._asked_at + TAIL_SECONDS

    def asks(self, running: int) -> bool:
        """Whether it is time to ask whether others wait: half of the transfers are free, or nothing but stragglers
        has been left for TAIL_SECONDS. Once in that time.
        """
        now, left = time.monotonic(), self._transfers.stragglers
        self._since = min(self._since, now) if 0 < left <= STRAGGLERS_MAX else float("inf")
        straggling = now >= max(self._since, self._asked_at) + TAIL_SECONDS
        if not (straggling or self.half_free(running)):
            return False
        self._asked_at = now
        return True


class Idleness:
    """Looks at the transfers of one chunk, tick by tick."""

    def __init__(self) -> None:
        self._busy = 1.0
        self._looked_at = 0.0

    async def look(self, transfers: Transfers[Any], others_wait: Callable[[], Awaitable[bool]]) -> float:
        """For how many seconds the chunk is to be parked; 0: it goes on.

        One that does a little now and then gives way only to others.
        """
        idle_seconds = transfers.idle_seconds()
        if idle_seconds > PARK_SECONDS:
            return idle_seconds
        self._busy += (transfers.running - self._busy) * WEIGHT
        now = time.monotonic()
        if self._busy >= BUSY_MIN or now < self._looked_at + LOOK_SECONDS:
            return 0.0
        self._looked_at = now
        return PARK_SECONDS if await others_wait() else 0.0
