"""pending → queued: which chunks run next, each with its credits held. Commit, then send.

The window is short, about two chunks for each live slot, so that an urgent job waits for one chunk at most.
"""

import structlog
from sqlalchemy.orm import Session

from models.credits import Hold, hold, spendable
from models.job_lifecycle import block_job
from models.jobs import BlockedReason
from models.prioritizing import bring_chunks_along
from models.queueing import (
    ClaimedChunk,
    Message,
    chunks_in_flight,
    claim_chunks,
    mark_dispatched,
    queue_chunks,
)
from models.workers import chunks_aside, live_slots
from scheduler.leader import Leader

CHUNKS_PER_SLOT = 2
BATCH = 16

log = structlog.get_logger()


def dispatch(leader: Leader) -> list[Message]:
    """Queue the next chunks, as many as the window has room for; the messages to send once this returns."""
    with leader.transaction() as session:
        window = CHUNKS_PER_SLOT * live_slots(session) + chunks_aside(session)
        room = window - chunks_in_flight(session)
        if room <= 0:
            return []
        chunks = claim_chunks(session, min(room, BATCH))
        mark_dispatched(session, [chunk.job_id for chunk in chunks])
        return queue_chunks(session, [chunk.id for chunk in chunks if place_hold(session, chunk)])


def bring_along(leader: Leader) -> bool:
    """Give a batch of chunks the priority that their job was given; whether there were any."""
    with leader.transaction() as session:
        return bring_chunks_along(session) > 0


def place_hold(session: Session, chunk: ClaimedChunk) -> bool:
    """Hold the chunk's worst case, or what the credits cover of it; whether it may be queued.

    When they do not cover a single image, the job is blocked.
    """
    if chunk.held or take_hold(session, chunk, chunk.unresolved):
        return True
    reason = BlockedReason.OUT_OF_CREDITS
    if chunk.account_id is not None:
        free, reason = spendable(session, chunk.account_id)
        covered = min(free // chunk.unit_price, chunk.unresolved)
        if (covered or not chunk.unresolved) and take_hold(session, chunk, covered):
            return True
    block(session, chunk, reason)
    return False


def take_hold(session: Session, chunk: ClaimedChunk, candidates: int) -> bool:
    """Hold the price of so many candidates."""
    if chunk.account_id is None:
        return False
    amount = candidates * chunk.unit_price
    return hold(
        session, Hold(chunk.account_id, chunk.user_id, chunk.job_id, chunk.id, amount, chunk.unit_price)
    )


def block(session: Session, chunk: ClaimedChunk, reason: BlockedReason) -> None:
    """Take the job out of the claim until its account can pay."""
    if block_job(session, chunk.job_id, reason):
        log.warning("job_blocked", job=chunk.job_id, reason=reason.value)
