"""Trying failures again: ended chunks → pending, with only the candidates that are to be retried.

Each takes a Session and never commits. No credits are held here: dispatch does that. What a job may have at once
(``max_images``) bounds what comes back, with the job's row locked.
"""

import datetime
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from models.closing import being_closed
from models.jobs import ChunkStatus
from models.outcomes import FINAL, TRANSIENT, TRANSIENT_STATUSES, Reason
from models.recording import Tally, count_job

CHUNKS_MAX = 50
CANDIDATES_MAX = 5000
"""Bounds of one batch: chunks looked at, and candidates that they have without an image."""


BEFORE_ALL = -1
"""Stands before every chunk."""


class RetryError(Exception):
    """A job cannot be retried as it is, or as asked. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which failures are tried again: those for ``reasons``, and ``http_status`` for one of ``statuses``; of all
    chunks, or of those with these ids.
    """

    reasons: frozenset[Reason]
    statuses: frozenset[int] = frozenset()
    chunk_ids: frozenset[int] | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """What MATCHING asks for."""
        return {
            "reasons": sorted(reason.value for reason in self.reasons - FINAL),
            "statuses": sorted(self.statuses),
            "chunk_ids": None if self.chunk_ids is None else sorted(self.chunk_ids),
        }

    @property
    def rewinds(self) -> bool:
        """Whether candidates that were never handed out come back, too."""
        return self.chunk_ids is None and Reason.CANCELLED in self.reasons


TRANSIENT_FAILURES = Selection(TRANSIENT, TRANSIENT_STATUSES)
ALL_FAILURES = Selection(frozenset(Reason) - FINAL)

MATCHING = """(f.reason = ANY(CAST(:reasons AS text[]))
    OR (f.reason = 'http_status' AND f.http_status = ANY(CAST(:statuses AS int[]))))"""
OF_CHUNKS = "(CAST(:chunk_ids AS int[]) IS NULL OR {0} = ANY(CAST(:chunk_ids AS int[])))"


@dataclass(frozen=True, slots=True)
class RetryableJob:
    """A job with its row locked. So many candidates are ``wanted`` at most: more could exceed ``max_images``."""

    id: int
    priority: int
    unit_price: int
    wanted: int
    failures: Mapping[str, int]
    source_step: int
    input: str | None

    def possible(self, selection: Selection) -> int:
        """So many failures match at most, by the job's counters."""
        reasons = {reason.value for reason in selection.reasons}
        if selection.statuses:
            reasons.add(Reason.HTTP_STATUS.value)
        return sum(count for reason, count in self.failures.items() if reason in reasons)


JOB = text("""
SELECT j.priority, j.unit_price,
    greatest(0, j.max_images - j.source_position + j.failed_images) AS wanted, j.failures, j.source_step,
    j.source->>'object' AS input, j.source_kind, p.user_id,
    j.completed_at IS NULL AND j.cancelled_at IS NOT NULL AS stopping
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
    if row.stopping:
        raise RetryError(f"Job {job_id} is being cancelled: try again once `pixtrawl watch {job_id}` ends.")
    if being_closed(session, row.user_id):
        raise RetryError(f"Job {job_id} belongs to a user who is being deleted.")
    return RetryableJob(job_id, *row[:6])


@dataclass(slots=True)
class Retried:
    """What is tried again: candidates by the reason that they had, in so many chunks."""

    reasons: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    full: bool = False
    """Whether ``max_images`` allows no more."""
    after: int | None = None
    """The last chunk that was looked at, by its index; None: there are no more."""


ENDED_CHUNKS = text(f"""
SELECT c.id, c.chunk_index, c.status, c.failed,
    CAST(c.image_range->>'start' AS int) AS first, CAST(c.image_range->>'end' AS int) - 1 AS last
FROM job_chunks c
WHERE c.job_id = :job_id AND c.chunk_index > :after AND c.status IN ('completed', 'failed') AND c.failed > 0
    AND c.candidates IS NOT NULL AND {OF_CHUNKS.format("c.id")}
ORDER BY c.chunk_index LIMIT :limit FOR NO KEY UPDATE
""")


def retry_chunks(
    session: Session,
    job_id: int,
    selection: Selection,
    after: int = BEFORE_ALL,
    *,
    until: datetime.datetime | None = None,
) -> Retried:
    """completed or failed → pending, and an ended job → running: a batch of chunks behind ``after``.

    With ``until``, only failures from no later than then. Raises what lock_job raises.
    """
    chunks = _lock_chunks(session, job_id, selection, after)
    if not chunks:
        return Retried()
    job = lock_job(session, job_id)
    taken = _take_failures(session, job, chunks, selection, until)
    retried = Retried(after=chunks[-1].chunk_index, full=sum(taken.values()) >= job.wanted)
    candidates: Counter[int] = Counter()
    for (chunk_id, reason), number in taken.items():
        retried.reasons[reason] += number
        candidates[chunk_id] += number
    if candidates:
        retried.chunks = len(candidates)
        _reopen_chunks(session, job, candidates)
        statuses = Counter(chunk.status for chunk in chunks if chunk.id in candidates)
        _reopen_job(session, job_id, retried.reasons, statuses)
    return retried


def _lock_chunks(
    session: Session, job_id: int, selection: Selection, after: int
) -> list[Row[tuple[int, ...]]]:
    """The next ended chunks with failures, at least one and no more than a batch takes."""
    parameters = {"job_id": job_id, "after": after, "limit": CHUNKS_MAX} | selection.parameters
    chunks: list[Row[tuple[int, ...]]] = []
    failed = 0
    for chunk in session.execute(ENDED_CHUNKS, parameters):
        failed += chunk.failed
        if failed <= CANDIDATES_MAX or not chunks:
            chunks.append(chunk)
        else:
            break
    return chunks


TAKE_FAILURES = text(f"""
WITH matching AS MATERIALIZED (
    SELECT f.*, sum(f.size) OVER (ORDER BY f.position) AS so_far
    FROM unnest(CAST(:ids AS int[]), CAST(:firsts AS int[]), CAST(:lasts AS int[])) AS chunk (id, first, last)
        CROSS JOIN LATERAL (
            SELECT f.position, f.chunk_id, f.reason, f.position_end - f.position + 1 AS size FROM failures f
            WHERE f.job_id = :job_id AND f.position BETWEEN chunk.first AND chunk.last AND f.chunk_id = chunk.id
                AND {MATCHING} AND f.at <= coalesce(CAST(:until AS timestamptz), 'infinity') OFFSET 0) AS f),
taken AS MATERIALIZED (
    SELECT *, least(size, :wanted - so_far + size) AS number FROM matching WHERE so_far - size < :wanted),
gone AS (
    DELETE FROM failures f
    WHERE f.job_id = :job_id AND f.position = ANY(ARRAY(SELECT position FROM taken WHERE number = size))),
shortened AS (
    UPDATE failures f SET position = f.position + taken.number FROM taken
    WHERE f.job_id = :job_id AND f.position = taken.position AND taken.number < taken.size
        AND f.position = ANY(ARRAY(SELECT position FROM taken WHERE number < size)))
SELECT chunk_id, reason, sum(number) AS number FROM taken GROUP BY chunk_id, reason
""")
"""One candidate range at most is shortened, and its row found by its position: never by reading all of a job."""


def _take_failures(
    session: Session,
    job: RetryableJob,
    chunks: Sequence[Row[tuple[int, ...]]],
    selection: Selection,
    until: datetime.datetime | None,
) -> dict[tuple[int, str], int]:
    """Delete what matches, the first ``wanted`` candidates at most; of a range the rest stays. Counts by chunk
    and reason.
    """
    parameters = selection.parameters | {"job_id": job.id, "wanted": job.wanted, "until": until}
    parameters |= {
        "ids": [chunk.id for chunk in chunks],
        "firsts": [chunk.first for chunk in chunks],
        "lasts": [chunk.last for chunk in chunks],
    }
    rows = session.execute(TAKE_FAILURES, parameters)
    return {(row.chunk_id, row.reason): int(row.number) for row in rows}


REOPEN_CHUNKS = text("""
UPDATE job_chunks c SET status = 'pending', failed = c.failed - again.candidates, priority = :priority,
    retry_count = 0, error_message = NULL
FROM unnest(CAST(:ids AS int[]), CAST(:counts AS int[])) AS again (id, candidates) WHERE c.id = again.id
""")


def _reopen_chunks(session: Session, job: RetryableJob, candidates: Counter[int]) -> None:
    parameters = {"ids": list(candidates), "counts": list(candidates.values()), "priority": job.priority}
    session.execute(REOPEN_CHUNKS, parameters)


REOPEN_JOB = text("""
UPDATE crawl_jobs SET status = 'running', completed_at = NULL, cancelled_at = NULL,
    dispatched_at = CASE WHEN completed_at IS NULL THEN dispatched_at ELSE now() END,
    progress = least(99, greatest(
        100 * CAST(valid_images + failed_images AS bigint) / greatest(total_images, 1),
        100 * CAST(valid_images AS bigint) / max_images))
WHERE id = :job_id
""")
"""A job that ended long ago is as urgent as a new one: ageing begins now."""


def _reopen_job(
    session: Session, job_id: int, reasons: Counter[str], statuses: Counter[str] | None = None
) -> None:
    """ended → running, or running → running: these failures are none any more, these chunks have not ended."""
    ended = statuses or Counter()
    tally = Tally(failures={reason: -number for reason, number in reasons.items()})
    completed, failed = -ended[ChunkStatus.COMPLETED], -ended[ChunkStatus.FAILED]
    count_job(session, job_id, tally, completed=completed, failed_chunks=failed)
    session.execute(REOPEN_JOB, {"job_id": job_id})


LEFT_OUT = text("""
SELECT f.position, f.position_end FROM failures f JOIN crawl_jobs j ON j.id = f.job_id
WHERE f.job_id = :job_id AND f.position = (SELECT max(position) FROM failures WHERE job_id = :job_id)
    AND f.chunk_id IS NULL AND f.reason = 'cancelled' AND j.status = 'cancelled' AND j.source_state = 'exhausted'
    AND j.source_position = f.position_end + 1
""")
REWIND = text("""
UPDATE crawl_jobs SET source_position = :position, source_state = 'splitting', source_step = source_step + 1
WHERE id = :job_id AND source_step = :step RETURNING id
""")
DELETE_RANGE = text("DELETE FROM failures WHERE job_id = :job_id AND position = :position")


def never_handed_out(session: Session, job_id: int) -> range:
    """Positions of a cancelled job that were in no chunk when it was cancelled."""
    row = session.execute(LEFT_OUT, {"job_id": job_id}).one_or_none()
    return range(0) if row is None else range(row.position, row.position_end + 1)


def rewind_source(session: Session, job: RetryableJob) -> int:
    """source exhausted by cancelling → splitting where it stood, and the job → running. Returns how many
    candidates may be handed out again.
    """
    left = never_handed_out(session, job.id)
    parameters = {"job_id": job.id, "position": left.start, "step": job.source_step}
    if not left or session.execute(REWIND, parameters).first() is None:
        return 0
    session.execute(DELETE_RANGE, parameters)
    _reopen_job(session, job.id, Counter({Reason.CANCELLED.value: len(left)}))
    return len(left)


OLDEST = text(f"""
SELECT max(at) FROM (
    SELECT f.at FROM failures f WHERE f.job_id = :job_id AND {MATCHING} AND f.chunk_id IS NOT NULL
        AND {OF_CHUNKS.format("f.chunk_id")} ORDER BY f.at LIMIT :limit) AS oldest
""")


def oldest_failures(
    session: Session, job_id: int, selection: Selection, count: int
) -> datetime.datetime | None:
    """When the last of the ``count`` oldest matching failures was recorded: whoever failed again comes after
    those who were not tried yet.
    """
    parameters = {"job_id": job_id, "limit": count} | selection.parameters
    at: datetime.datetime | None = session.execute(OLDEST, parameters).scalar_one()
    return at


MATCHES = text(f"""
SELECT EXISTS (SELECT FROM failures f WHERE f.job_id = :job_id AND {MATCHING} AND f.chunk_id IS NOT NULL
    AND {OF_CHUNKS.format("f.chunk_id")})
""")


def any_failures(session: Session, job_id: int, selection: Selection) -> bool:
    """Whether a failure of a chunk matches."""
    return bool(session.execute(MATCHES, {"job_id": job_id} | selection.parameters).scalar_one())


CHUNKS_OF_JOB = text("SELECT id FROM job_chunks WHERE job_id = :job_id AND id = ANY(CAST(:ids AS int[]))")


def chunks_elsewhere(session: Session, job_id: int, chunk_ids: Collection[int]) -> set[int]:
    """Those of ``chunk_ids`` that are no chunks of the job."""
    rows = session.execute(CHUNKS_OF_JOB, {"job_id": job_id, "ids": sorted(chunk_ids)})
    return set(chunk_ids) - set(rows.scalars())
