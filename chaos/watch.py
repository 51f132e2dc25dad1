"""How long recovery takes: from an injection's end until every chunk that was in flight at its beginning has ended.

Only looks, through a connection of its own past the proxies.
"""

import threading
import time
from collections.abc import Collection
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from chaos.system import System

LOOK_SECONDS = 0.1
OPEN = "SELECT id FROM job_chunks WHERE id = ANY(:ids) AND status IN ('pending', 'processing')"


class Watch:
    """A context manager around a thread that looks. ``recoveries`` has the seconds of each injection."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.recoveries: list[float] = []
        self._open: list[tuple[float, set[int]]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_until_stopped, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def injected(self, in_flight: Collection[int]) -> None:
        """An injection is over; ``in_flight`` chunks were so when it began."""
        with self._lock:
            self._open.append((time.monotonic(), set(in_flight)))

    def _look_until_stopped(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            with self._lock:
                waiting = list(self._open)
            ids = sorted({chunk for _, chunks in waiting for chunk in chunks})
            if not ids:
                continue
            try:
                still = {row.id for row in self.system.query(OPEN, ids=ids)}
            except SQLAlchemyError:
                continue
            now = time.monotonic()
            for injection in waiting:
                if not injection[1] & still:
                    self.recoveries.append(now - injection[0])
                    with self._lock:
                        self._open.remove(injection)
