"""What went missing: leases that expired, messages that were lost, chunks of jobs that were stopped."""

import structlog

from models.ending import drain_cancelled, drain_paused, rescue_chunk
from models.job_lifecycle import stopped_jobs
from models.queueing import Message, publish_again
from scheduler.leader import Leader

LOST_SECONDS = 5.0
"""With an empty queue, a chunk that has been 'queued' for so long has lost its message."""
LOST_SECONDS_MAX = 60.0
"""The same while other messages wait. A message too many does no harm: the row decides."""

log = structlog.get_logger()


def rescue_expired(leader: Leader) -> None:
    """processing → pending (or failed) for every chunk whose worker was silent for too long."""
    while True:
        with leader.transaction() as session:
            rescued = rescue_chunk(session, leader.settings.lost_leases_max)
        if rescued is None:
            return
        log.warning("chunk_rescued", chunk=rescued.chunk_id, job=rescued.job_id, failed=rescued.failed)


def find_lost_messages(leader: Leader, waiting: int) -> list[Message]:
    """Chunks to ring for again, when ``waiting`` messages stand in the queue."""
    with leader.transaction() as session:
        messages = publish_again(session, LOST_SECONDS_MAX if waiting else LOST_SECONDS)
    for message in messages:
        log.warning("message_published_again", chunk=message.chunk_id, attempt=message.attempt)
    return messages


def drain_stopped(leader: Leader) -> None:
    """Chunks of cancelled jobs end, those of paused jobs leave the queue; a batch of each a round."""
    with leader.transaction() as session:
        jobs = stopped_jobs(session)
    for job_id, cancelled in jobs:
        with leader.transaction() as session:
            drained = (drain_cancelled if cancelled else drain_paused)(session, job_id)
        if drained:
            log.info("job_drained", job=job_id, chunks=drained, cancelled=cancelled)
