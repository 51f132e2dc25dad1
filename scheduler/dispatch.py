"""pending → queued: which chunks run next, each with its credits held. Commit, then send.

The window is short, about two chunks for each live slot, so that an urgent job waits for one chunk at most.
"""

from collections.abc import Sequence

import structlog
from sqlalchemy.orm import Session

from models.credits import Hold, hold, hold_all, spendable
from models.job_lifecycle import block_job
from models.jobs import BlockedReason
from models.prioritizing import bring_chunks_along
from models.queueing import (
    ClaimedChunk,
    Message,
    claim_chunks,
    lock_jobs,
    queue_chunks,
    room_in_flight,
)
from scheduler.leader import Leader

CHUNKS_PER_SLOT = 2
BATCH = 16

log = structlog.get_logger()


def dispatch(leader: Leader) -> list[Message]:
    """Queue the next chunks, as many as the window has room for; the messages to send once this returns."""
    with leader.transaction() as session:
        room = room_in_flight(session, CHUNKS_PER_SLOT)
        return queue_next(session, min(room, BATCH)) if room > 0 else []


def queue_next(session: Session, limit: int) -> list[Message]:
    """Queue up to ``limit`` chunks, those that should run next. Locks chunks, then jobs, then accounts."""
    chunks = lock_jobs(session, claim_chunks(session, limit))
    return queue_chunks(session, place_holds(session, chunks))


def bring_along(leader: Leader) -> bool:
    """Give a batch of chunks the priority that their job was given; whether there were any."""
    with leader.transaction() as session:
        return bring_chunks_along(session) > 0


def place_holds(session: Session, chunks: Sequence[ClaimedChunk]) -> list[int]:
    """Hold the chunks' worst cases; the ids of those that may be queued, in their order.

    Of an account that cannot pay for all of its chunks, each is looked at by itself.
    """
    wanted = [hold_of(chunk, chunk.unresolved) for chunk in chunks if not chunk.held]
    held = hold_all(session, [hold for hold in wanted if hold is not None])
    return [
        chunk.id for chunk in chunks if chunk.held or chunk.id in held or place_what_is_left(session, chunk)
    ]


def hold_of(chunk: ClaimedChunk, candidates: int) -> Hold | None:
    """The price of so many candidates; None when the user has no account."""
    if chunk.account_id is None:
        return None
    amount = candidates * chunk.unit_price
    return Hold(chunk.account_id, chunk.user_id, chunk.job_id, chunk.id, amount, chunk.unit_price)


def place_what_is_left(session: Session, chunk: ClaimedChunk) -> bool:
    """Hold what the credits cover of a chunk, which may be all of it; whether it may be queued.

    When they do not cover a single image, the job is blocked.
    """
    reason = BlockedReason.OUT_OF_CREDITS
    if chunk.account_id is not None:
        free, reason = spendable(session, chunk.account_id)
        covered = min(free // chunk.unit_price, chunk.unresolved)
        wanted = hold_of(chunk, covered)
        if wanted is not None and (covered or not chunk.unresolved) and hold(session, wanted):
            return True
    block(session, chunk, reason)
    return False


def block(session: Session, chunk: ClaimedChunk, reason: BlockedReason) -> None:
    """Take the job out of the claim until its account can pay."""
    if block_job(session, chunk.job_id, reason):
        log.warning("job_blocked", job=chunk.job_id, reason=reason.value)
