"""The arrows of a chunk while a worker has it: start, checkpoint, settle, hand back, park, renew the lease.

Each is one guarded step in the caller's transaction and never commits. The guard is the fence
(status, attempt, checkpoint): when it does not hold, somebody else owns the chunk, the arrow returns None or
False, and nothing was written. docs/lifecycle.md draws all arrows; the scheduler's are in queueing.py.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.candidates import unpack_candidates
from models.credits import PAID, CreditError, settle
from models.jobs import ChunkStatus
from models.opt_outs import OptOut
from models.outcomes import Candidate, Outcome, Verification
from models.recording import RESOLVED, Tally, count_job, count_usage, record_outcomes


@dataclass(frozen=True, slots=True)
class Fence:
    """What a worker must still own when it writes: this attempt of this chunk after this many checkpoints."""

    chunk_id: int
    job_id: int
    user_id: uuid.UUID
    worker: str
    attempt: int
    checkpoint: int


@dataclass(frozen=True, slots=True)
class StartedChunk:
    """A chunk that this worker now owns. ``candidates`` are those without an outcome yet that its hold covers;
    ``unpaid`` says how many more there are: they wait for another hold.
    """

    fence: Fence
    candidates: Sequence[Candidate]
    unpaid: int
    store_url: str
    retry_count: int
    verification: Verification
    ignored_opt_outs: frozenset[OptOut] = frozenset()


STARTED_COLUMNS = f"""c.job_id, p.user_id, c.checkpoint, c.candidates,
    CAST(c.image_range->>'start' AS int) AS first, c.accepted + c.failed AS resolved, c.retry_count, j.store_url,
    j.ignored_opt_outs, j.verification,
    {PAID} / j.unit_price - c.accepted AS covered"""
START = text(f"""
UPDATE job_chunks c SET status = 'processing', worker = :worker, queued_at = NULL,
    lease_until = now() + make_interval(secs => :lease_seconds)
FROM crawl_jobs j JOIN projects p ON p.id = j.project_id
WHERE c.id = :chunk_id AND c.attempt = :attempt AND c.queued_at IS NOT NULL
    AND j.id = c.job_id AND j.status IN ('pending', 'running')
    AND j.paused_at IS NULL AND j.cancelled_at IS NULL
RETURNING {STARTED_COLUMNS}
""")
"""Only a pending chunk is queued, by CHECK."""
OWNED = text(f"""
SELECT {STARTED_COLUMNS}
FROM job_chunks c JOIN crawl_jobs j ON j.id = c.job_id JOIN projects p ON p.id = j.project_id
WHERE c.id = :chunk_id AND c.attempt = :attempt AND c.worker = :worker
""")
COUNT_START = text("""
UPDATE crawl_jobs SET active_chunks = active_chunks + 1, status = 'running',
    started_at = coalesce(started_at, now())
WHERE id = :job_id
""")


def start_chunk(
    session: Session, chunk_id: int, attempt: int, worker: str, lease_seconds: float, *, again: bool = False
) -> StartedChunk | None:
    """queued → processing, if ``attempt`` is the chunk's present one and its job runs. The first chunk starts
    its job. No more candidates are handed out than the open hold still covers if all are accepted.

    ``again`` says that an earlier call's COMMIT may have gone through unseen: then a chunk that this very
    worker already owns is returned as started.
    """
    parameters = {"chunk_id": chunk_id, "attempt": attempt, "worker": worker, "lease_seconds": lease_seconds}
    row = session.execute(START, parameters).one_or_none()
    if row is not None:
        session.execute(COUNT_START, {"job_id": row.job_id})
    elif again:
        row = session.execute(OWNED, parameters).one_or_none()
    if row is None:
        return None
    candidates = unpack_candidates(bytes(row.candidates), row.first)
    if row.resolved:
        bounds = {"job_id": row.job_id, "first": row.first, "last": row.first + len(candidates) - 1}
        resolved = set(session.execute(RESOLVED, bounds).scalars())
        candidates = [candidate for candidate in candidates if candidate.position not in resolved]
    fence = Fence(chunk_id, row.job_id, row.user_id, worker, attempt, row.checkpoint)
    covered = min(len(candidates), max(0, row.covered))
    unpaid = len(candidates) - covered
    return StartedChunk(
        fence,
        candidates[:covered],
        unpaid,
        row.store_url,
        row.retry_count,
        Verification(row.verification),
        frozenset(map(OptOut, row.ignored_opt_outs)),
    )


LOOK = text("""
SELECT j.cancelled_at IS NOT NULL AS cancelled, c.lease_until NOT BETWEEN
    now() + make_interval(secs => 0.9 * :lease_seconds) AND now() + make_interval(secs => :lease_seconds) AS due
FROM job_chunks c JOIN crawl_jobs j ON j.id = c.job_id
WHERE c.id = :chunk_id AND c.attempt = :attempt AND c.worker = :worker
""")
RENEW = text("""
UPDATE job_chunks c SET lease_until = now() + make_interval(secs => :lease_seconds)
FROM (SELECT id FROM job_chunks WHERE id = :chunk_id AND attempt = :attempt AND worker = :worker
    FOR NO KEY UPDATE SKIP LOCKED) mine
WHERE c.id = mine.id
""")


@dataclass(frozen=True, slots=True)
class Ownership:
    """What a worker learns about its chunk when it looks after it."""

    owned: bool
    cancelled: bool = False


def renew_lease(session: Session, fence: Fence, lease_seconds: float) -> Ownership:
    """processing → processing: a later ``lease_until``, once a tenth of the lease is over (or the server's clock
    was set back); tells whether the job was cancelled.

    Waits for nobody: while a commit of this worker's own holds the row, that renews the lease.
    """
    parameters = _guard(fence) | {"lease_seconds": lease_seconds}
    row = session.execute(LOOK, parameters).one_or_none()
    if row is None:
        return Ownership(owned=False)
    if row.due:
        session.execute(RENEW, parameters)
    return Ownership(owned=True, cancelled=row.cancelled)


def checkpoint_chunk(
    session: Session, fence: Fence, outcomes: Sequence[Outcome], lease_seconds: float
) -> Tally | None:
    """processing → processing: the outcomes so far; the lease begins anew, the retry count too."""
    if not _lock(session, fence):
        return None
    tally = record_outcomes(session, fence.job_id, fence.chunk_id, outcomes)
    session.execute(CHECKPOINT, _guard(fence) | _counts(tally) | {"lease_seconds": lease_seconds})
    count_job(session, fence.job_id, tally)
    count_usage(session, fence.user_id, tally)
    return tally


CHECKPOINT = text("""
UPDATE job_chunks SET checkpoint = checkpoint + 1, accepted = accepted + :accepted, failed = failed + :failed,
    retry_count = CASE WHEN :accepted + :failed > 0 THEN 0 ELSE retry_count END,
    lease_until = now() + make_interval(secs => :lease_seconds)
WHERE id = :chunk_id
""")


def settle_chunk(session: Session, fence: Fence, outcomes: Sequence[Outcome]) -> Tally | None:
    """processing → completed: the last outcomes, and the hold settled for what was accepted.

    Raises CreditError when there is no hold to settle: a bug, and the transaction must not commit.
    """
    return _settle(session, fence, outcomes, ChunkStatus.COMPLETED)


def settle_short_chunk(session: Session, fence: Fence, outcomes: Sequence[Outcome]) -> Tally | None:
    """processing → pending: the hold was short and is settled; what it did not cover waits for another one.

    No retry is counted. Raises CreditError as settle_chunk does.
    """
    return _settle(session, fence, outcomes, ChunkStatus.PENDING)


def _settle(session: Session, fence: Fence, outcomes: Sequence[Outcome], status: ChunkStatus) -> Tally | None:
    if not _lock(session, fence):
        return None
    tally = record_outcomes(session, fence.job_id, fence.chunk_id, outcomes)
    parameters = _guard(fence) | _counts(tally) | {"status": status.value}
    accepted = session.execute(SETTLE_CHUNK, parameters).scalar_one()
    completed = 1 if status is ChunkStatus.COMPLETED else 0
    count_job(session, fence.job_id, tally, active=-1, completed=completed)
    if settle(session, fence.chunk_id, accepted) is None:
        raise CreditError(f"Chunk {fence.chunk_id} was settled without an open hold.")
    count_usage(session, fence.user_id, tally)
    return tally


SETTLE_CHUNK = text("""
UPDATE job_chunks SET status = :status, checkpoint = checkpoint + 1, accepted = accepted + :accepted,
    failed = failed + :failed, lease_until = NULL, worker = NULL,
    retry_count = CASE WHEN :accepted + :failed > 0 THEN 0 ELSE retry_count END
WHERE id = :chunk_id RETURNING accepted
""")


def hand_back_chunk(
    session: Session, fence: Fence, outcomes: Sequence[Outcome], *, available_in_seconds: float = 0
) -> Tally | None:
    """processing → pending: the outcomes so far are kept, so is the hold, and no retry is counted.

    With ``available_in_seconds`` the chunk is parked: nobody takes it before.
    """
    if not _lock(session, fence):
        return None
    tally = record_outcomes(session, fence.job_id, fence.chunk_id, outcomes)
    session.execute(HAND_BACK, _guard(fence) | _counts(tally) | {"seconds": available_in_seconds})
    count_job(session, fence.job_id, tally, active=-1)
    count_usage(session, fence.user_id, tally)
    return tally


HAND_BACK = text("""
UPDATE job_chunks SET status = 'pending', checkpoint = checkpoint + 1, accepted = accepted + :accepted,
    failed = failed + :failed, lease_until = NULL, worker = NULL,
    retry_count = CASE WHEN :accepted + :failed > 0 THEN 0 ELSE retry_count END,
    available_at = CASE WHEN :seconds > 0 THEN now() + make_interval(secs => :seconds) END
WHERE id = :chunk_id
""")
GIVE_UP = text("UPDATE job_chunks SET lease_until = now() WHERE id = :chunk_id")


def give_up_chunk(session: Session, fence: Fence) -> Tally | None:
    """processing → processing with a lease that ends now: the rescue takes the chunk and counts a lost lease."""
    if not _lock(session, fence):
        return None
    session.execute(GIVE_UP, _guard(fence))
    return Tally()


LOCK = text("""
SELECT FROM job_chunks
WHERE id = :chunk_id AND attempt = :attempt AND checkpoint = :checkpoint AND worker = :worker
FOR NO KEY UPDATE
""")
"""A chunk has a worker exactly while it is processing, by CHECK. Naming the status here, too, would let the planner
go by the index on it as long as its statistics say that nothing is processing.
"""
WRITTEN = text("""
SELECT FROM job_chunks WHERE id = :chunk_id AND attempt = :attempt AND checkpoint = :checkpoint + 1
    AND (status <> 'processing' OR worker = :worker)
""")


def already_written(session: Session, fence: Fence) -> bool:
    """Whether a write with this fence, whose COMMIT was not acknowledged, did succeed.

    Only the owner of (attempt, checkpoint) can have made the next checkpoint.
    """
    return session.execute(WRITTEN, _guard(fence)).first() is not None


def _lock(session: Session, fence: Fence) -> bool:
    return session.execute(LOCK, _guard(fence)).first() is not None


def _guard(fence: Fence) -> dict[str, object]:
    return {
        "chunk_id": fence.chunk_id,
        "attempt": fence.attempt,
        "checkpoint": fence.checkpoint,
        "worker": fence.worker,
    }


def _counts(tally: Tally) -> dict[str, object]:
    return {"accepted": tally.accepted, "failed": tally.failed}
