"""What a sweep asks and remembers: which ended jobs are due, which objects a row names, whose input copies may go.

Takes a Session or a Connection and never commits. scheduler/sweep.py deletes the objects.
"""

import datetime
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from models.rules import SWEEP_LOCK

DUE = text("""
SELECT id, coalesce(store_url, ''), completed_at FROM crawl_jobs
WHERE completed_at < now() - make_interval(secs => :seconds) AND source_kind IS NOT NULL
    AND (swept_at IS NULL OR swept_at < completed_at)
    AND deleting_at IS NULL AND id <> ALL(CAST(:skip AS int[]))
ORDER BY completed_at LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class UnsweptJob:
    """A job that ended at ``completed_at``, and the URL of its folder."""

    id: int
    store_url: str
    completed_at: datetime.datetime


def unswept_job(session: Session, seconds: float, skip: Collection[int] = ()) -> UnsweptJob | None:
    """The job that ended first, more than ``seconds`` ago, and was not swept since; none of those to ``skip``."""
    row = session.execute(DUE, {"seconds": seconds, "skip": list(skip)}).one_or_none()
    return None if row is None else UnsweptJob(*row)


SWEPT = text("""
UPDATE crawl_jobs SET swept_at = clock_timestamp() WHERE id = :job_id AND completed_at = :completed_at
""")


def mark_swept(session: Session, job: UnsweptJob) -> None:
    """ended → ended and swept, unless it was reopened meanwhile."""
    session.execute(SWEPT, {"job_id": job.id, "completed_at": job.completed_at})


LOCK = text("SELECT pg_advisory_lock(:key, :job_id)")
UNLOCK = text("SELECT pg_advisory_unlock(:key, :job_id)")


@contextmanager
def kept_ended(connection: Connection, job_id: int) -> Iterator[None]:
    """Nobody reopens an ended job meanwhile: the trigger ``reopen_job`` waits for this lock of the session.

    No transaction is open in between, so objects may be deleted. A process that dies loses its session and with
    it the lock; one that is stopped loses it after ``idle_session_timeout``.
    """
    parameters = {"key": SWEEP_LOCK, "job_id": job_id}
    with connection.begin():
        connection.execute(LOCK, parameters)
    try:
        yield
    finally:
        if not connection.closed and not connection.invalidated:
            with connection.begin():
                connection.execute(UNLOCK, parameters)


ENDED = text("""
SELECT FROM crawl_jobs j WHERE id = :job_id AND completed_at IS NOT NULL AND deleting_at IS NULL
    AND NOT EXISTS (SELECT FROM job_chunks c WHERE c.job_id = j.id AND c.status = 'processing')
""")


def has_ended(session: Session, job_id: int) -> bool:
    """Whether a job is there and has ended: then no worker's commit can name an object any more.

    Another service may end a job under its workers, who go on: chunks are looked at, too.
    """
    return session.execute(ENDED, {"job_id": job_id}).first() is not None


NAMED = text("""
SELECT encode(sha256, 'hex') FROM images
WHERE crawl_job_id = :job_id AND sha256 = ANY(ARRAY(
    SELECT decode(digest, 'hex') FROM unnest(CAST(:digests AS text[])) AS digest))
""")
NAMED_BY_URL = text("""
SELECT storage_url FROM images
WHERE crawl_job_id = :job_id AND sha256 IS NULL AND storage_url = ANY(CAST(:urls AS text[]))
""")


def named_digests(session: Session, job_id: int, digests: Collection[str]) -> set[str]:
    """Which of these sha256 (hex) an image of the job has."""
    return set(session.execute(NAMED, {"job_id": job_id, "digests": list(digests)}).scalars())


def named_urls(session: Session, job_id: int, urls: Collection[str]) -> set[str]:
    """Which of these URLs an image of another service names, that tells no digest."""
    return set(session.execute(NAMED_BY_URL, {"job_id": job_id, "urls": list(urls)}).scalars())


FORGET_INPUTS = text("""
WITH old AS (
    SELECT id, source->>'object' AS name FROM crawl_jobs
    WHERE source_kind IS NOT NULL AND source->>'object' = ANY(CAST(:names AS text[]))
        AND completed_at < now() - make_interval(secs => :seconds)
    FOR NO KEY UPDATE SKIP LOCKED),
forgotten AS (
    UPDATE crawl_jobs SET source = source - 'object' WHERE id = ANY(ARRAY(SELECT id FROM old)))
SELECT name FROM old
""")
INPUTS_IN_USE = text("""
SELECT source->>'object' FROM crawl_jobs
WHERE source_kind IS NOT NULL AND source->>'object' = ANY(CAST(:names AS text[]))
""")


def forget_inputs(session: Session, names: Collection[str], seconds: float) -> set[str]:
    """Jobs that ended more than ``seconds`` ago let go of their copy of the input; the names of those copies."""
    return set(session.execute(FORGET_INPUTS, {"names": list(names), "seconds": seconds}).scalars())


def inputs_in_use(session: Session, names: Collection[str]) -> set[str]:
    """Which of these copies a job names."""
    return set(session.execute(INPUTS_IN_USE, {"names": list(names)}).scalars())


OVERDUE = text("""
SELECT count(*) FROM (SELECT FROM crawl_jobs
    WHERE completed_at < now() - make_interval(secs => :seconds) AND source_kind IS NOT NULL
        AND (swept_at IS NULL OR swept_at < completed_at) LIMIT 1000) AS first
""")


def overdue_sweeps(session: Session, seconds: float) -> int:
    """Jobs that ended more than ``seconds`` ago and were not swept since; 1,000 stands for more."""
    return int(session.execute(OVERDUE, {"seconds": seconds}).scalar_one())
