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

from models.outcomes import FINAL, TRANSIENT, TRANSIENT_STATUSES, Reason
from models.reopening import RetryableJob, lock_job, reopen_job

CHUNKS_MAX = 50
CANDIDATES_MAX = 5000
"""Bounds of one batch: chunks looked at, and candidates that they have without an image."""


BEFORE_ALL = -1
"""Stands before every chunk."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which failures are tried again: those for ``reasons``, ``http_status`` for one of ``statuses``, and with
    ``unreachable`` those ``robots`` whose robots.txt could not be read; of all chunks, or of those with these ids.
    """

    reasons: frozenset[Reason]
    statuses: frozenset[int] = frozenset()
    chunk_ids: frozenset[int] | None = None
    unreachable: bool = False

    @property
    def parameters(self) -> dict[str, object]:
        """What MATCHING asks for."""
        return {
            "reasons": sorted(reason.value for reason in self.reasons - FINAL),
            "statuses": sorted(self.statuses),
            "unreachable": self.unreachable,
            "chunk_ids": None if self.chunk_ids is None else sorted(self.chunk_ids),
        }

    @property
    def rewinds(self) -> bool:
        """Whether candidates that were never handed out come back, too."""
        return self.chunk_ids is None and Reason.CANCELLED in self.reasons

    def possible(self, failures: Mapping[str, int]) -> int:
        """So many of a job's ``failures`` match at most, by its counters."""
        reasons = {reason.value for reason in self.reasons}
        if self.statuses:
            reasons.add(Reason.HTTP_STATUS.value)
        if self.unreachable:
            reasons.add(Reason.ROBOTS.value)
        return sum(count for reason, count in failures.items() if reason in reasons)


TRANSIENT_FAILURES = Selection(TRANSIENT, TRANSIENT_STATUSES, unreachable=True)
ALL_FAILURES = Selection(frozenset(Reason) - FINAL)

MATCHING = """(f.reason = ANY(CAST(:reasons AS text[]))
    OR (f.reason = 'http_status' AND f.http_status = ANY(CAST(:statuses AS int[])))
    OR (:unreachable AND f.reason = 'robots' AND f.evidence->>'unreachable' IS NOT NULL))"""
OF_CHUNKS = "(CAST(:chunk_ids AS int[]) IS NULL OR {0} = ANY(CAST(:chunk_ids AS int[])))"


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
        reopen_job(session, job_id, retried.reasons, statuses)
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
            SELECT f.position, chunk.id AS chunk_id, f.reason, f.position_end - f.position + 1 AS size
            FROM failures f
            WHERE f.job_id = :job_id AND f.position BETWEEN chunk.first AND chunk.last
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
