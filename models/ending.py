"""The arrows by which the scheduler takes a chunk from a worker or from the queue: rescue, drain, end.

Each takes a Session and never commits. Chunks that another process holds are skipped, never waited for.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.credits import settle_all
from models.jobs import ChunkStatus
from models.outcomes import Reason
from models.recording import Tally, count_job, refuse_ranges, refuse_unresolved

ENDING_COLUMNS = """c.id, c.job_id, c.size, c.accepted, c.failed, c.retry_count,
    CAST(c.image_range->>'start' AS int) AS start, CAST(c.image_range->>'end' AS int) AS "end\""""


@dataclass(frozen=True, slots=True)
class EndingChunk:
    """A locked chunk that may have to end now. Its positions go from ``start`` up to but without ``end``."""

    id: int
    job_id: int
    size: int
    accepted: int
    failed: int
    retry_count: int
    start: int
    end: int

    @property
    def unresolved(self) -> int:
        """Candidates without an outcome."""
        return self.size - self.accepted - self.failed

    @property
    def untouched(self) -> bool:
        """Whether no candidate has an outcome."""
        return 0 < self.unresolved == self.size


EXPIRED = text(f"""
SELECT {ENDING_COLUMNS} FROM job_chunks c WHERE c.status = 'processing'
    AND c.lease_until < coalesce(CAST(:judged_at AS timestamptz), now())
ORDER BY c.lease_until LIMIT 1 FOR UPDATE SKIP LOCKED
""")
RETURN_LOST = text("""
UPDATE job_chunks SET status = 'pending', lease_until = NULL, worker = NULL, retry_count = retry_count + 1,
    available_at = CASE WHEN retry_count > 0
        THEN now() + make_interval(secs => least(:seconds_max, 0.25 * 2.0 ^ least(retry_count, 20))) END
WHERE id = :id
""")
APART_SECONDS_MAX = 30.0
"""From its second lost worker in a row a chunk waits, twice as long each time and at most so long: what kills all
workers is over by then, what a chunk brings with it is not.
"""


@dataclass(frozen=True, slots=True)
class RescuedChunk:
    """A chunk whose lease had expired. ``failed`` says that too many were lost in a row."""

    chunk_id: int
    job_id: int
    failed: bool


def rescue_chunk(
    session: Session, lost_leases_max: int, judged_at: datetime.datetime | None = None
) -> RescuedChunk | None:
    """processing → pending with one more lost lease; or → failed, the rest ``worker_lost``, the hold settled, when
    more than ``lost_leases_max`` were lost in a row. One chunk a transaction keeps the lock order.

    ``judged_at`` is a time of the server's clock that the caller trusts; without it, now.
    """
    row = session.execute(EXPIRED, {"judged_at": judged_at}).one_or_none()
    if row is None:
        return None
    chunk = EndingChunk(*row)
    failed = chunk.retry_count >= lost_leases_max
    if failed:
        detail = f"{chunk.retry_count + 1} workers in a row were lost without an outcome"
        end_chunks(session, [chunk], ChunkStatus.FAILED, Reason.WORKER_LOST, detail, active=-1)
    else:
        session.execute(RETURN_LOST, {"id": chunk.id, "seconds_max": APART_SECONDS_MAX})
        count_job(session, chunk.job_id, Tally(), active=-1)
    return RescuedChunk(chunk.id, chunk.job_id, failed)


DRAINABLE = text(f"""
SELECT {ENDING_COLUMNS} FROM job_chunks c WHERE c.job_id = :job_id AND c.status = 'pending'
    AND EXISTS (SELECT FROM crawl_jobs j WHERE j.id = :job_id AND j.cancelled_at IS NOT NULL)
LIMIT :limit FOR UPDATE SKIP LOCKED
""")
UNRESOLVED_MAX = 500
"""Candidates that get a row each in one batch: those of chunks that have some outcomes already."""


def drain_cancelled(session: Session, job_id: int, limit: int = 75) -> int:
    """pending or queued → completed, the rest ``cancelled``, holds settled: a batch of one cancelled job.

    Returns how many chunks ended.
    """
    chunks: list[EndingChunk] = []
    single = 0
    for row in session.execute(DRAINABLE, {"job_id": job_id, "limit": limit}):
        chunk = EndingChunk(*row)
        single += 0 if chunk.untouched else chunk.unresolved
        if single <= UNRESOLVED_MAX or not chunks:
            chunks.append(chunk)
    if chunks:
        end_chunks(session, chunks, ChunkStatus.COMPLETED, Reason.CANCELLED, "the job was cancelled")
    return len(chunks)


UNQUEUE_PAUSED = text("""
WITH held AS (
    SELECT id FROM job_chunks WHERE status = 'pending' AND id IN (
        SELECT chunk_id FROM credit_transactions
        WHERE job_id = :job_id AND type = 'usage' AND status = 'pending')
        AND (queued_at IS NULL OR EXISTS (SELECT FROM crawl_jobs WHERE id = :job_id AND paused_at IS NOT NULL))
    ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED)
UPDATE job_chunks c SET queued_at = NULL FROM held WHERE c.id = held.id
RETURNING c.id, c.accepted
""")


def drain_paused(session: Session, job_id: int, limit: int = 100) -> int:
    """queued → pending, holds settled: a batch of one paused job; so are holds of chunks that came back from a
    worker, those of a blocked job, too: it waits for credits that it holds itself. Returns how many holds were
    settled.
    """
    chunks = session.execute(UNQUEUE_PAUSED, {"job_id": job_id, "limit": limit}).all()
    if chunks:
        settle_all(session, {chunk.id: chunk.accepted for chunk in chunks})
    return len(chunks)


END_CHUNKS = text("""
UPDATE job_chunks SET status = :status, failed = size - accepted, queued_at = NULL, available_at = NULL,
    lease_until = NULL, worker = NULL, error_message = :message
WHERE id = ANY(CAST(:ids AS int[]))
""")


def end_chunks(
    session: Session,
    chunks: Sequence[EndingChunk],
    status: ChunkStatus,
    reason: Reason,
    detail: str,
    *,
    active: int = 0,
) -> None:
    """Locked chunks of one job → ended: every candidate without an outcome gets ``reason``; holds are settled."""
    job_id = chunks[0].job_id
    ranges = [(chunk.id, chunk.start, chunk.end) for chunk in chunks if chunk.untouched]
    refuse_ranges(session, job_id, ranges, reason, detail)
    for chunk in chunks:
        if chunk.unresolved and not chunk.untouched:
            refuse_unresolved(session, job_id, (chunk.id, chunk.start, chunk.end), reason, detail)
    ids = [chunk.id for chunk in chunks]
    session.execute(END_CHUNKS, {"ids": ids, "status": status.value, "message": detail})
    unresolved = sum(chunk.unresolved for chunk in chunks)
    tally = Tally(failures={reason.value: unresolved} if unresolved else None)
    ended = {"failed_chunks": len(chunks)} if status is ChunkStatus.FAILED else {"completed": len(chunks)}
    count_job(session, job_id, tally, active=active, **ended)
    settle_all(session, {chunk.id: chunk.accepted for chunk in chunks})
