"""What went missing: leases that expired, messages that were lost, chunks of jobs that were stopped."""

import datetime

import structlog
from sqlalchemy import text

from models.ending import drain_cancelled, drain_paused, rescue_chunk
from models.job_lifecycle import stopped_jobs
from models.queueing import Message, publish_again, queued_chunks
from models.workers import live_slots
from scheduler.leader import Leader

LOST_SECONDS = 5.0
"""With an empty queue, a chunk that has been 'queued' for so long has lost its message."""
LOST_SECONDS_MAX = 60.0
"""The same while other messages wait. A message too many does no harm: the row decides."""
PUBLISHED_AGAIN_MAX = 100

log = structlog.get_logger()


SERVER_TIME = text("SELECT clock_timestamp()")


def server_time(leader: Leader) -> datetime.datetime:
    """PostgreSQL's clock, the only one that judges leases."""
    with leader.transaction() as session:
        now: datetime.datetime = session.execute(SERVER_TIME).scalar_one()
    return now


def rescue_expired(leader: Leader, judged_at: datetime.datetime | None = None) -> None:
    """processing → pending (or failed) for every chunk whose worker was silent for too long, by the server's clock
    at ``judged_at``: it may jump right after it was looked at.
    """
    while True:
        with leader.transaction() as session:
            rescued = rescue_chunk(session, leader.settings.lost_leases_max, judged_at)
        if rescued is None:
            return
        log.warning("chunk_rescued", chunk=rescued.chunk_id, job=rescued.job_id, failed=rescued.failed)


def find_lost_messages(leader: Leader, waiting: int) -> list[Message]:
    """Chunks to ring for again, when ``waiting`` messages stand in the queue.

    None while nobody could answer, and none while there is a message for every queued chunk: they would only
    pile up.
    """
    with leader.transaction() as session:
        missing = queued_chunks(session) - waiting
        if missing <= 0 or not live_slots(session):
            return []
        seconds = LOST_SECONDS_MAX if waiting else LOST_SECONDS
        messages = publish_again(session, seconds, min(missing, PUBLISHED_AGAIN_MAX))
    for message in messages:
        log.warning("message_published_again", chunk=message.chunk_id, attempt=message.attempt)
    return messages


def find_stopped(leader: Leader) -> list[tuple[int, bool]]:
    """Jobs to drain: cancelled (True) or paused (False)."""
    with leader.transaction() as session:
        return stopped_jobs(session)


def drain_job(leader: Leader, job_id: int, *, cancelled: bool) -> int:
    """Chunks of a cancelled job end, those of a paused job leave the queue and hold nothing; how many, of one
    batch.
    """
    with leader.transaction() as session:
        drained = (drain_cancelled if cancelled else drain_paused)(session, job_id)
    if drained:
        log.info("job_drained", job=job_id, chunks=drained, cancelled=cancelled)
    return drained
