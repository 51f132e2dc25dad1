"""Whether an event loop still goes round: what looks after leases, hosts and hanging threads runs in it.

A loop that hangs cannot end its process; the thread here does. Counts rounds rather than time, so that a process
that was stopped, or a machine that slept, is no such case.
"""

import asyncio
import faulthandler
import threading
from collections.abc import Callable

import structlog

PULSE_SECONDS = 10.0
PULSES_MISSED_MAX = 6
"""A minute: what a loop does at once takes less than a second, and on a machine with far too much to do ten."""

log = structlog.get_logger()


class Pulse:
    """Calls ``end`` when the loop has not answered for ``PULSES_MISSED_MAX`` times ``seconds``."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, end: Callable[[], object], seconds: float = PULSE_SECONDS
    ) -> None:
        self._loop = loop
        self._end = end
        self._seconds = seconds
        self._missed = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more. The loop may be closed afterwards."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds):
            if self._missed == PULSES_MISSED_MAX:
                log.error("loop_stuck", seconds=self._seconds * self._missed)
                faulthandler.dump_traceback(all_threads=True)
                self._end()
                return
            self._missed += 1
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._missed = 0
