"""The pool of a worker's children: Celery's own, but one that ends as soon as its children can.

Knows how processes end, and nothing of what they do.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from celery.concurrency import asynpool, prefork

from worker.presence import worker_leaves

COUNT_SECONDS_MAX = 2


class ChildProcess(asynpool.Worker):
    """What runs in a child; ends soon when the whole worker leaves.

    billiard's waits up to 30 s until the parent has counted every result, and then sleeps for a second. A parent
    that leaves forgets what it has sent and no child has confirmed yet, and may count no more. What it remembers it
    counts in time; without the wait, two children that end together have a result taken for lost now and then.
    """

    on_exit: Callable[[int, int], None] | None
    on_ready_counter: Any

    def _ensure_messages_consumed(self, completed: int) -> bool:
        if not worker_leaves():
            return bool(super()._ensure_messages_consumed(completed))  # type: ignore[misc]
        deadline = time.monotonic() + COUNT_SECONDS_MAX
        while self.on_ready_counter.value < completed and time.monotonic() < deadline:
            time.sleep(0.02)
        return True

    def _do_exit(self, pid: int, exitcode: int | None, exc: Exception | None = None) -> None:
        if worker_leaves():
            code = int(exc is not None) if exitcode is None else exitcode
            try:
                if self.on_exit is not None:
                    self.on_exit(pid, code)
            finally:
                os._exit(code)
        super()._do_exit(pid, exitcode, exc)  # type: ignore[misc]


class Processes(asynpool.AsynPool):
    """The children of one worker, as billiard sees them."""

    Worker = ChildProcess


class Pool(prefork.TaskPool):
    """The children of one worker, as Celery sees them (``worker_pool``)."""

    Pool = Processes
    _pool: Any

    def on_stop(self) -> None:
        """Wait for the children. Celery's own fires timers meanwhile, in a thread that ends half a second late:
        for brokers that want a heartbeat, which Redis does not.
        """
        if self._pool is not None:
            self._pool.close()
            self._pool.join()
            self._pool = None
