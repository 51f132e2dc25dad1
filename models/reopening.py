"""Going on with a job that has ended, or with the source that its cancelling cut off.

Each takes a Session and never commits. What is tried again of its chunks is retrying.py's.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.closing import being_closed
from models.jobs import OPEN_ENDED, ChunkStatus
from models.outcomes import Reason
from models.recording import Tally, count_job


class RetryError(Exception):
    """A job cannot be retried as it is, or as asked. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class RetryableJob:
    """A job with its row locked. So many candidates are ``wanted`` at most: more could exceed ``max_images``."""

    id: int
    priority: int
    unit_price: int
    wanted: int
    failures: Mapping[str, int]
    input: str | None


JOB = text("""
SELECT j.priority, j.unit_price,
    greatest(0, j.max_images - j.source_position + j.failed_images) AS wanted, j.failures,
    j.source->>'object' AS input, j.source_kind, p.user_id,
    j.completed_at IS NULL AND j.cancelled_at IS NOT NULL AS stopping, j.deleting_at IS NOT NULL AS deleting
FROM crawl_jobs j JOIN projects p ON p.id = j.project_id WHERE j.id = :job_id FOR NO KEY UPDATE OF j
""")


def lock_job(session: Session, job_id: int) -> RetryableJob:
    """The job, which neither ends nor is cancelled until the caller's transaction does.

    Raises RetryError when there is none, or when nothing of it can be tried again now.
    """
    row = session.execute(JOB, {"job_id": job_id}).one_or_none()
    if row is None:
        raise RetryError(f"There is no job {job_id}: `pixtrawl jobs` shows those there are.")
    if row.source_kind is None:
        raise RetryError(f"Job {job_id} was made by another service, which has its candidates.")
    if row.deleting:
        raise RetryError(f"Job {job_id} is being deleted: `pixtrawl delete {job_id}` completes that.")
    if row.stopping:
        raise RetryError(f"Job {job_id} is being cancelled: try again once `pixtrawl watch {job_id}` ends.")
    if being_closed(session, row.user_id):
        raise RetryError(f"Job {job_id} belongs to a user who is being deleted.")
    return RetryableJob(job_id, *row[:5])


REOPEN_JOB = text(f"""
UPDATE crawl_jobs SET status = 'running', completed_at = NULL, cancelled_at = NULL,
    dispatched_at = CASE WHEN completed_at IS NULL THEN dispatched_at ELSE now() END,
    progress = least(99, greatest(
        CASE WHEN {OPEN_ENDED} THEN 0 ELSE
            100 * CAST(valid_images + failed_images AS bigint) / greatest(total_images, 1) END,
        100 * CAST(valid_images AS bigint) / max_images))
WHERE id = :job_id
""")
"""A job that ended long ago is as urgent as a new one: ageing begins now."""


def reopen_job(
    session: Session, job_id: int, reasons: Counter[str], statuses: Counter[str] | None = None
) -> None:
    """ended → running, or running → running: these failures are none any more, these chunks have not ended."""
    ended = statuses or Counter()
    tally = Tally(failures={reason: -number for reason, number in reasons.items()})
    completed, failed = -ended[ChunkStatus.COMPLETED], -ended[ChunkStatus.FAILED]
    count_job(session, job_id, tally, completed=completed, failed_chunks=failed)
    session.execute(REOPEN_JOB, {"job_id": job_id})


CUT_OFF = text("""
UPDATE crawl_jobs SET status = 'running', completed_at = NULL, cancelled_at = coalesce(cancelled_at, now())
WHERE completed_at IS NOT NULL AND source_kind IS NOT NULL AND deleting_at IS NULL AND id IN (
    SELECT job_id FROM credit_transactions WHERE type = 'usage' AND status = 'pending')
RETURNING id
""")


def reopen_cut_off_jobs(session: Session) -> list[int]:
    """ended by another service → being cancelled: its chunks still hold credits, which only their end gives back.

    No job of ours ends so: ``close_job`` waits for every chunk.
    """
    return list(session.execute(CUT_OFF).scalars())


LEFT_OUT = text("""
SELECT position, position_end FROM failures
WHERE job_id = :job_id AND position = (SELECT max(position) FROM failures WHERE job_id = :job_id)
    AND chunk_id IS NULL AND reason = 'cancelled'
""")
"""The rest of a source comes after all that chunks have: it is found without reading a million other failures."""
REWIND = text("""
UPDATE crawl_jobs SET source_position = :position, source_state = 'splitting', source_detail = source->>'detail',
    source_step = source_step + 1
WHERE id = :job_id
""")
DELETE_RANGE = text("DELETE FROM failures WHERE job_id = :job_id AND position = :position")


def never_handed_out(session: Session, job_id: int) -> range:
    """Positions that were in no chunk when the job was cancelled, whatever became of the others since."""
    row = session.execute(LEFT_OUT, {"job_id": job_id}).one_or_none()
    return range(0) if row is None else range(row.position, row.position_end + 1)


def rewind_source(session: Session, job: RetryableJob) -> int:
    """source exhausted by cancelling → splitting where it stood, and the job → running. Returns how many
    candidates may be handed out again: none when the sweep has let go of the input since the caller looked.
    """
    if job.input is None:
        return 0
    left = never_handed_out(session, job.id)
    if not left:
        return 0
    parameters = {"job_id": job.id, "position": left.start}
    session.execute(REWIND, parameters)
    session.execute(DELETE_RANGE, parameters)
    reopen_job(session, job.id, Counter({Reason.CANCELLED.value: len(left)}))
    return len(left)
