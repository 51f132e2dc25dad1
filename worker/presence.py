"""That a worker is alive, and that it is leaving: its heartbeat row, and the byte that its children watch.

Runs in the worker's parent process; never touches a chunk.
"""

import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import celery.signals
import structlog
from billiard.process import current_process
from celery import bootsteps
from celery.worker import state
from sqlalchemy import Engine, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from models.database import first_line, make_engine, transaction

HEARTBEAT_SECONDS = 3
REPORT_SECONDS = 0.5
LEAVING = mmap.mmap(-1, 1)
"""Shared with the pool's children: made before the fork."""
ASIDE = mmap.mmap(-1, 1024)
"""For each of the pool's children, how many chunks go on aside in it."""
CHANGE_SECONDS = 0.2

log = structlog.get_logger()


_told = threading.Event()


def worker_leaves() -> bool:
    """Whether this worker was asked to stop."""
    return LEAVING[0] != 0


def leaving() -> bool:
    """Whether this worker was asked to stop, or this child by its pool: it hands its chunk back."""
    return worker_leaves() or _told.is_set()


def tell_aside(chunks: int) -> None:
    """A child says how many chunks go on aside in it."""
    ASIDE[getattr(current_process(), "index", 0) % len(ASIDE)] = chunks


@contextmanager
def heeding_pool() -> Iterator[None]:
    """While a chunk runs, SIGTERM to its child, by which Celery makes a pool smaller, means to hand it back first.

    The signal is sent again once the task has been reported: the pool's own handler ends the child then.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: _told.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if _told.is_set():
            threading.Timer(REPORT_SECONDS, os.kill, (os.getpid(), signal.SIGTERM)).start()


@celery.signals.worker_shutting_down.connect
def _tell_at_once(**_: object) -> None:
    """SIGTERM or Ctrl-C, in the handler itself: the parent may be waiting for a Redis that does not answer."""
    LEAVING[0] = 1
    if TellChildren.waker is not None:
        os.write(TellChildren.waker, b"!")


class TellChildren(bootsteps.StartStopStep):
    """Tells pool children, through one shared byte, that this worker is leaving.

    Celery's own shutdowns tell only the parent, and would wait for whole chunks.
    """

    requires = ("celery.worker.components:Pool",)
    waker: int | None = None
    """What is written here wakes the consumer's loop, which looks after a signal once a second."""

    def start(self, _worker: Any) -> None:
        """Begin as one that stays."""
        LEAVING[0] = 0
        self.woken, TellChildren.waker = os.pipe()

    def register_with_event_loop(self, _worker: Any, hub: Any) -> None:
        """Let a loop of the consumer, which has a new one for each connection, be woken."""
        hub.add_reader(self.woken, os.read, self.woken, 1)

    def close(self, worker: Any) -> None:
        """SIGTERM, Flower's shutdown or Ctrl-C: leave."""
        LEAVING[0] = 1
        log.info("worker_leaving", worker=worker.hostname)

    def stop(self, _worker: Any) -> None:
        """Nothing more: ``close`` came first."""

    def terminate(self, worker: Any) -> None:
        """Leave at once."""
        self.close(worker)


SEEN = text("""
INSERT INTO workers AS w (name, slots, busy, aside, version) VALUES (:name, :slots, :busy, :aside, :version)
ON CONFLICT (name) DO UPDATE SET slots = excluded.slots, busy = excluded.busy, aside = excluded.aside,
    version = excluded.version, seen_at = now(), active_at = CASE WHEN :moved THEN now() ELSE w.active_at END
""")
GONE = text("DELETE FROM workers WHERE name = :name OR seen_at < now() - interval '1 day'")


class Heartbeat(bootsteps.StartStopStep):
    """Writes this worker's row every few seconds and removes it when the worker leaves.

    Each beat has a connection of its own, so that none is open when the pool forks a child.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.stopped = threading.Event()
        self.reachable = True
        self.thread: threading.Thread | None = None

    def start(self, worker: Any) -> None:
        """Beat from a thread of its own: the consumer's loop must not wait for the database."""
        self.thread = threading.Thread(target=self.beat, args=(worker,), name="heartbeat", daemon=True)
        self.thread.start()

    def close(self, _worker: Any) -> None:
        """Take no more chunks: the row goes first."""
        self.stopped.set()

    def stop(self, _worker: Any) -> None:
        """Wait until the row is gone, or cannot be reached."""
        self.stopped.set()
        if self.thread is not None:
            self.thread.join(timeout=3)

    def beat(self, worker: Any) -> None:
        """Write the row until stopped, then remove it."""
        engine = make_engine(worker.app.settings.sqlalchemy_url, pooled=False)
        name = f"{worker.hostname}/{os.getpid()}"
        row = {"name": name, "version": version("pixtrawl")}
        written = None
        while not self.stopped.is_set():
            aside = sum(ASIDE[:])
            taken, busy = sum(state.total_count.values()), len(state.active_requests)
            slots = slots_of(worker)
            now = taken, busy, aside
            beat = row | {"slots": slots, "busy": busy, "aside": aside, "moved": now != written}
            # A pool that was shrunk to nothing runs nothing: its worker is not there for anybody.
            if slots > 0 and self.write(engine, SEEN, beat):
                written = now
            until = time.monotonic() + HEARTBEAT_SECONDS
            while (
                sum(ASIDE[:]) == aside and time.monotonic() < until and not self.stopped.wait(CHANGE_SECONDS)
            ):
                pass
        if self.reachable:
            self.write(engine, GONE, row)

    def write(self, engine: Engine, statement: TextClause, row: dict[str, Any]) -> bool:
        """Whether a statement was written; says once that the database is away, and once that it is back."""
        try:
            with transaction(engine) as session:
                session.execute(statement, row)
        except SQLAlchemyError as error:
            if self.reachable:
                log.warning("database_away", worker=row["name"], error=first_line(error))
            self.reachable = False
        else:
            if not self.reachable:
                log.info("database_back", worker=row["name"])
            self.reachable = True
        return self.reachable


def slots_of(worker: Any) -> int:
    """Chunks that a worker runs at once: its pool may have grown or shrunk since it started."""
    return int(worker.pool.num_processes if worker.pool else worker.concurrency)
