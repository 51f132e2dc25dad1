"""Whether a chunk mostly waits for its hosts, so that its child is better used for another one."""

import time
from collections.abc import Awaitable, Callable

from worker.transfers import Transfers

PARK_SECONDS = 5.0
"""A chunk in which nothing may start for longer is parked; it comes back as soon as something may."""
BUSY_MIN = 0.5
"""Transfers at once, on average, under which a chunk mostly waits."""
WEIGHT = 0.04
LOOK_SECONDS = 2.0


class Idleness:
    """Looks at the transfers of one chunk, tick by tick."""

    def __init__(self) -> None:
        self._busy = 1.0
        self._looked_at = 0.0

    async def look(self, transfers: Transfers, others_wait: Callable[[], Awaitable[bool]]) -> float:
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
