"""Leadership: one scheduler at a time writes, on the one connection that holds the lock.

A leader that is stopped loses its session to ``idle_session_timeout`` and with it the lock: it can write
nothing more, so a second leader can do no harm.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from models.database import connection_lost, make_engine
from models.settings import Settings

LOCK = 0x70697874  # "pixt"
STANDBY_SECONDS = 0.5
IDLE_SECONDS_MAX = 7
"""A stopped leader is replaced after so long, and the standby's next look: in less than ten seconds."""
PING_SECONDS = 2

log = structlog.get_logger()
Result = TypeVar("Result")

PING = text("SELECT")
TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")


class Leader:
    """The connection that holds the lock. Every write of the scheduler goes through ``transaction``."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self.name = f"{socket.gethostname()}/{os.getpid()}"

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction on the leader's connection."""
        with Session(self.connection, expire_on_commit=False) as session, session.begin():
            yield session

    def lost_by(self, error: BaseException) -> bool:
        """Whether ``error`` cost the session, and with it the lock: nothing more may be written then."""
        return connection_lost(error) or self.connection.invalidated

    def meanwhile(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call something that may be slow and needs no transaction, and keep the session alive meanwhile."""
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(function, *arguments)
            while not wait([call], PING_SECONDS).done:
                with self.transaction() as session:
                    session.execute(PING)
            return call.result()


@contextmanager
def leadership(
    settings: Settings, stop: threading.Event, reached: Callable[[], None] = lambda: None
) -> Iterator[Leader | None]:
    """Wait until this process is the leader; None when ``stop`` was set before. ``reached`` is called once the
    database answers.

    Raises SQLAlchemy's DBAPIError when the database is away. Needs a direct connection to PostgreSQL, not one
    pooled by transactions.
    """
    engine = make_engine(
        settings.sqlalchemy_url,
        application_name="pixtrawl scheduler",
        idle_session_timeout=f"{IDLE_SECONDS_MAX}s",
        idle_in_transaction_session_timeout=f"{IDLE_SECONDS_MAX}s",
    )
    try:
        with engine.connect() as connection:
            reached()
            yield Leader(connection, settings) if _wait_for_lock(connection, stop) else None
            connection.invalidate()  # Closing the session for good releases the lock.
    finally:
        engine.dispose()


def _wait_for_lock(connection: Connection, stop: threading.Event) -> bool:
    waited = False
    while not stop.is_set():
        locked = connection.execute(TRY_LOCK, {"key": LOCK}).scalar_one()
        connection.commit()
        if locked:
            log.info("leader")
            return True
        if not waited:
            log.info("standby")
            waited = True
        stop.wait(STANDBY_SECONDS)
    return False
