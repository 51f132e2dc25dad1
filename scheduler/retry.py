"""Retrying a job: one short transaction after another, until every ended chunk was looked at.

Stopped anywhere, it leaves what was done: the same call goes on.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.job_lifecycle import log_activity
from models.outcomes import Reason
from models.page_retrying import retry_pages
from models.reopening import RetryableJob, RetryError, lock_job, never_handed_out, rewind_source
from models.retrying import (
    BEFORE_ALL,
    Selection,
    any_failures,
    chunks_elsewhere,
    oldest_failures,
    retry_chunks,
)
from scheduler.locked import patiently
from worker.store import MissingObjectError, open_store

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Take:
    """One transaction after another."""

    engine: Engine
    say: Callable[[str], None]

    def __call__(self, act: Callable[[Session], Result]) -> Result:
        """What ``act`` returns, once its transaction is committed."""
        return patiently(self.engine, act, self.say)


@dataclass(slots=True)
class Retry:
    """What a retry has done so far: candidates by the reason that they had, and the chunks that they are in.

    ``unchunked`` of them were in no chunk before; ``left_out`` says that ``max_images`` allows no more. So many
    ``pages`` are read again.
    """

    job: RetryableJob
    reasons: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    unchunked: int = 0
    left_out: bool = False
    pages: int = 0

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
            "pages": self.pages,
        }


def retry(
    engine: Engine,
    store_url: str,
    job_id: int,
    selection: Selection,
    say: Callable[[str], None] = lambda _: None,
) -> Retry:
    """Let the failures that match be tried again; ``say`` hears when others keep rows locked meanwhile.

    Raises RetryError, or StoreError when the store does not answer; what was committed before stays.
    """
    take = Take(engine, say)
    job = take(lambda session: lock_job(session, job_id))
    elsewhere = take(lambda session: chunks_elsewhere(session, job_id, selection.chunk_ids or ()))
    rewinds = selection.rewinds and bool(take(lambda session: never_handed_out(session, job_id)))
    if elsewhere:
        raise RetryError(
            f"Job {job_id} has no chunk {', '.join(map(str, sorted(elsewhere)))}: "
            "`pixtrawl credits history` names the chunks of jobs."
        )
    done = Retry(job)
    if rewinds:
        check_input(store_url, job)
        done.unchunked = take(lambda session: rewind_source(session, lock_job(session, job_id)))
        done.reasons[Reason.CANCELLED.value] += done.unchunked
    full = retry_ended_chunks(take, done, selection)
    done.left_out = full and take(lambda session: any_failures(session, job_id, selection))
    done.pages = take(lambda session: retry_pages(session, job_id, selection))
    if done.candidates or done.pages:
        take(lambda session: log_activity(session, job_id, "crawl_job.retried", done.report()))
    return done


def retry_ended_chunks(take: Take, done: Retry, selection: Selection) -> bool:
    """Batch by batch; whether it ended because ``max_images`` allows no more.

    Then the oldest failures come first: what fails again and again must not keep others from their turn.
    """
    job = done.job
    until = None
    if job.wanted < selection.possible(job.failures):
        until = take(lambda session: oldest_failures(session, job.id, selection, job.wanted))
    after: int | None = BEFORE_ALL
    while after is not None:
        batch = take(partial(retry_chunks, job_id=job.id, selection=selection, after=after, until=until))
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
