"""Retrying a job: one short transaction after another, until every ended chunk was looked at.

Stopped anywhere, it leaves what was done: the same call goes on.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from models.database import transaction
from models.job_lifecycle import log_activity
from models.outcomes import Reason
from models.reopening import RetryableJob, RetryError, lock_job, never_handed_out, rewind_source
from models.retrying import (
    BEFORE_ALL,
    Selection,
    any_failures,
    chunks_elsewhere,
    oldest_failures,
    retry_chunks,
)
from worker.store import MissingObjectError, open_store


@dataclass(slots=True)
class Retry:
    """What a retry has done so far: candidates by the reason that they had, and the chunks that they are in.

    ``unchunked`` of them were in no chunk before; ``left_out`` says that ``max_images`` allows no more.
    """

    job: RetryableJob
    reasons: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    unchunked: int = 0
    left_out: bool = False

    @property
    def candidates(self) -> int:
        """Candidates that are tried again."""
        return self.reasons.total()

    @property
    def credits_max(self) -> int:
        """What they cost when all are accepted that may be."""
        return min(self.candidates, self.job.wanted) * self.job.unit_price

    def report(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "job": self.job.id,
            "candidates": self.candidates,
            "chunks": self.chunks,
            "reasons": dict(self.reasons),
            "credits_max": self.credits_max,
            "left_out": self.left_out,
        }


def retry(engine: Engine, store_url: str, job_id: int, selection: Selection) -> Retry:
    """Let the failures that match be tried again.

    Raises RetryError, or StoreError when the store does not answer; what was committed before stays.
    """
    with transaction(engine) as session:
        job = lock_job(session, job_id)
        elsewhere = chunks_elsewhere(session, job_id, selection.chunk_ids or ())
        rewinds = selection.rewinds and bool(never_handed_out(session, job_id))
    if elsewhere:
        raise RetryError(
            f"Job {job_id} has no chunk {', '.join(map(str, sorted(elsewhere)))}: "
            "`pixtrawl credits history` names the chunks of jobs."
        )
    done = Retry(job)
    if rewinds:
        check_input(store_url, job)
        with transaction(engine) as session:
            done.unchunked = rewind_source(session, lock_job(session, job_id))
        done.reasons[Reason.CANCELLED.value] += done.unchunked
    full = retry_ended_chunks(engine, done, selection)
    with transaction(engine) as session:
        done.left_out = full and any_failures(session, job_id, selection)
        if done.candidates:
            log_activity(session, job_id, "crawl_job.retried", done.report())
    return done


def retry_ended_chunks(engine: Engine, done: Retry, selection: Selection) -> bool:
    """Batch by batch; whether it ended because ``max_images`` allows no more.

    Then the oldest failures come first: what fails again and again must not keep others from their turn.
    """
    job = done.job
    until = None
    if job.wanted < selection.possible(job.failures):
        with transaction(engine) as session:
            until = oldest_failures(session, job.id, selection, job.wanted)
    after: int | None = BEFORE_ALL
    while after is not None:
        with transaction(engine) as session:
            batch = retry_chunks(session, job.id, selection, after, until=until)
        done.reasons.update(batch.reasons)
        done.chunks += batch.chunks
        if batch.full:
            return True
        after = batch.after
    return False


def check_input(store_url: str, job: RetryableJob) -> None:
    """Candidates that were never handed out are read from the copy of the input. Raises RetryError without it."""
    try:
        open_store(store_url).size(job.input or "")
    except (MissingObjectError, ValueError):
        raise RetryError(
            f"The copy of the input of job {job.id} is gone: submit the list again, or take only what failed with "
            f"`pixtrawl retry {job.id} --only REASON`."
        ) from None
