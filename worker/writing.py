"""Committing one arrow, whatever the connection does. Runs in the database thread of a child."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.closing import existing_chunks
from models.database import connection_lost, first_line, transaction, transient
from models.lifecycle import Fence, StartedChunk, already_written, start_chunk
from models.recording import Tally
from worker.presence import leaving

BACKOFF_SECONDS_MAX = 5.0
LEAVING_ATTEMPTS_MAX = 3

log = structlog.get_logger()
Result = TypeVar("Result")


class LostChunkError(Exception):
    """Somebody else owns the chunk now, or it was ``deleted`` with its user: write nothing more, and take the
    next message.
    """

    def __init__(self, reason: str, *, deleted: bool) -> None:
        super().__init__(reason)
        self.deleted = deleted


def lost(session: Session, fence: Fence) -> LostChunkError:
    """What became of a chunk whose fence does not hold."""
    if existing_chunks(session, [fence.chunk_id]):
        return LostChunkError("it has another owner", deleted=False)
    return LostChunkError("it was deleted", deleted=True)


def persist(write: Callable[[bool], Result], **what: int) -> Result:
    """Call ``write`` until it commits; its argument says whether an earlier COMMIT may have gone through.

    Only lost connections, deadlocks and timeouts are tried again. A worker that is leaving gives up after a
    few attempts: its lease expires. ``what`` names the row in the log.
    """
    attempt = 0
    unsure = False
    while True:
        try:
            return write(unsure)
        except DBAPIError as error:
            attempt += 1
            if not transient(error) or (leaving() and attempt >= LEAVING_ATTEMPTS_MAX):
                raise
            unsure = unsure or connection_lost(error)
            say = log.warning if attempt == 1 else log.debug
            say("database_retry", **what, attempt=attempt, error=first_line(error))
            time.sleep(min(BACKOFF_SECONDS_MAX, 0.1 * 2**attempt))


def start(
    engine: Engine, chunk_id: int, attempt: int, worker: str, lease_seconds: float
) -> StartedChunk | None:
    """Commit start_chunk; None when this attempt is not wanted (any more)."""

    def write(unsure: bool) -> StartedChunk | None:
        with transaction(engine) as session:
            return start_chunk(session, chunk_id, attempt, worker, lease_seconds, again=unsure)

    return persist(write, chunk=chunk_id)


def commit(engine: Engine, fence: Fence, arrow: Callable[[Session], Tally | None]) -> Tally | None:
    """Commit one arrow under ``fence``. None: an unacknowledged COMMIT had gone through, it is written.

    Raises LostChunkError when the fence does not hold: nothing was written.
    """

    def write(unsure: bool) -> Tally | None:
        with transaction(engine) as session:
            tally = arrow(session)
            if tally is None and not (unsure and already_written(session, fence)):
                raise lost(session, fence)
            return tally

    return persist(write, chunk=fence.chunk_id)
