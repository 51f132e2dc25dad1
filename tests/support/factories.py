"""Rows for tests: each function fills in what the database's rules and the row's status imply.

They flush, and commit only when asked to.
"""

import datetime
import hashlib
import itertools
import uuid
from typing import Any

from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

from models import (
    ActivityLog,
    APIKey,
    CrawlJob,
    CreditAccount,
    CreditTransaction,
    Failure,
    Image,
    JobChunk,
    Notification,
    NotificationPreference,
    Profile,
    Project,
    UsageMetric,
)
from models.accounts import TransactionStatus, TransactionType
from models.jobs import ChunkStatus, JobStatus
from models.outcomes import Reason

LEASE = datetime.timedelta(seconds=30)
ENDED_JOB = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)
ENDED_CHUNK = (ChunkStatus.COMPLETED, ChunkStatus.FAILED)


def create_profile(
    session: Session,
    email: str | None = None,
    balance: int = 0,
    monthly_limit: int = 1_000_000,
    *,
    commit: bool = False,
    **columns: Any,
) -> Profile:
    """A profile with its account; a bonus of ``balance`` credits explains the balance in the ledger."""
    user = Profile(email=email or f"{uuid.uuid4().hex}@example.invalid", **columns)
    session.add(user)
    session.flush()
    account = CreditAccount(user_id=user.id, current_balance=balance, monthly_limit=monthly_limit)
    session.add(account)
    session.flush()
    if balance:
        session.add(
            CreditTransaction(
                account_id=account.id,
                user_id=user.id,
                type=TransactionType.BONUS,
                status=TransactionStatus.COMPLETED,
                amount=balance,
                balance_after=balance,
                settled_at=_now(session),
            )
        )
    _finish(session, user, account, commit=commit)
    return user


def create_project(
    session: Session, user: Profile, name: str = "Birds", *, commit: bool = False, **columns: Any
) -> Project:
    """An active project of ``user``."""
    project = Project(user_id=user.id, name=name, **columns)
    session.add(project)
    _finish(session, project, user, commit=commit)
    return project


def create_job(session: Session, project: Project, *, commit: bool = False, **columns: Any) -> CrawlJob:
    """A job; its status implies the times at which it started and ended."""
    status = columns.setdefault("status", JobStatus.PENDING)
    columns.setdefault("name", "Kingfishers")
    if status != JobStatus.PENDING:
        columns.setdefault("started_at", _now(session))
    if status in ENDED_JOB:
        columns.setdefault("completed_at", _now(session))
    if status == JobStatus.CANCELLED:
        columns.setdefault("cancelled_at", columns["completed_at"])
    job = CrawlJob(project_id=project.id, **columns)
    session.add(job)
    _finish(session, job, project, commit=commit)
    return job


def create_chunk(
    session: Session,
    job: CrawlJob,
    size: int = 10,
    status: str = ChunkStatus.PENDING,
    *,
    commit: bool = False,
    **columns: Any,
) -> JobChunk:
    """The job's next chunk, at the job's next positions; counted in the job.

    Pass ``queued_at`` for one that waits in Celery's queue. A chunk that was ever queued has an attempt and a
    task id, a processing one a lease and a worker, an ended one an outcome for each candidate (all failed,
    unless ``accepted`` says otherwise).
    """
    index, start = _next_place(session, job)
    columns.setdefault("chunk_index", index)
    columns.setdefault("image_range", {"start": start, "end": start + size})
    if status != ChunkStatus.PENDING or columns.get("queued_at"):
        columns.setdefault("attempt", 1)
    if status == ChunkStatus.PROCESSING:
        columns.setdefault("worker", "worker@test")
        columns.setdefault("lease_until", _now(session) + LEASE)
    if status in ENDED_CHUNK:
        accepted: int = columns.setdefault("accepted", 0)
        columns.setdefault("failed", size - accepted)
    chunk = JobChunk(job_id=job.id, size=size, status=status, **columns)
    session.add(chunk)
    session.flush()
    if chunk.attempt and chunk.task_id is None:
        chunk.task_id = f"chunk-{chunk.id}.{chunk.attempt}"
    _count(job, chunk)
    _finish(session, chunk, job, commit=commit)
    return chunk


def create_tree(session: Session, email: str | None = None) -> Profile:
    """A user with one row in every table that hangs on a user; committed, and nothing of it is loaded."""
    unique = uuid.uuid4().hex
    user = create_profile(session, email, balance=100)
    job = create_job(session, create_project(session, user))
    chunk = create_chunk(session, job)
    session.add_all(
        [
            Image(
                crawl_job_id=job.id,
                chunk_id=chunk.id,
                original_url="u",
                filename="f",
                position=0,
                sha256=hashlib.sha256(b"a").digest(),
            ),
            Failure(job_id=job.id, chunk_id=chunk.id, position=1, position_end=1, reason=Reason.DNS),
            ActivityLog(user_id=user.id, action="submit"),
            APIKey(user_id=user.id, name="key", key_hash=unique, key_prefix="p"),
            Notification(user_id=user.id, title="Done", message="One image"),
            NotificationPreference(user_id=user.id),
            UsageMetric(user_id=user.id, metric_date=datetime.date(2026, 1, 1)),
        ]
    )
    session.commit()
    session.expire_all()
    return user


def _next_place(session: Session, job: CrawlJob) -> tuple[int, int]:
    """(index, first position) after the job's last chunk."""
    ranges = session.execute(
        select(JobChunk.chunk_index, JobChunk.image_range["end"].as_integer()).where(
            JobChunk.job_id == job.id
        )
    ).all()
    return max((row[0] + 1 for row in ranges), default=0), max((row[1] for row in ranges), default=0)


def _count(job: CrawlJob, chunk: JobChunk) -> None:
    """Count the chunk and its outcomes in its job, as the statements of the project do."""
    job.total_chunks += 1
    job.total_images += chunk.size
    job.valid_images += chunk.accepted
    job.downloaded_images += chunk.accepted
    job.failed_images += chunk.failed
    job.active_chunks += chunk.status == ChunkStatus.PROCESSING
    job.completed_chunks += chunk.status == ChunkStatus.COMPLETED
    job.failed_chunks += chunk.status == ChunkStatus.FAILED


def _now(session: Session) -> datetime.datetime:
    """The server's clock: leases are compared with it."""
    return session.execute(select(func.now())).scalar_one()


def _finish(session: Session, row: Any, *parents: Any, commit: bool) -> None:
    session.flush()
    if commit:
        session.commit()
    for changed in itertools.chain([row], parents):
        # Collections are loaded by whoever looks at them: loading all of them was half of what a factory cost.
        session.expire(changed)
        session.refresh(changed, inspect(changed).mapper.column_attrs.keys())
