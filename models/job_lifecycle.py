"""The arrows of a job: create, cancel, pause, resume, block, unblock, close; with what its owner is told.

Each is one guarded step in the caller's transaction and never commits.
"""

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from models.credits import PERIOD
from models.jobs import BlockedReason, JobStatus, SourceKind
from models.notifications import NotificationType
from models.opt_outs import OptOut
from models.outcomes import Verification
from models.queueing import LIVE


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A valid request for a job. ``candidates`` are known to stand in the source."""

    project_id: int
    name: str
    priority: int
    max_images: int
    source_kind: SourceKind
    source: Mapping[str, Any]
    candidates: int
    unit_price: int
    fingerprint: str
    ignored_opt_outs: Collection[OptOut] = ()
    verification: Verification = Verification.FULL

    @property
    def keywords(self) -> str | None:
        """What it searches for, as JSON."""
        words = self.source.get("keywords")
        return None if words is None else json.dumps(words)


CREATE = text("""
INSERT INTO crawl_jobs (project_id, name, priority, max_images, source_kind, source, total_images, unit_price,
    fingerprint, store_url, ignored_opt_outs, verification, source_detail, keywords)
VALUES (:project_id, :name, :priority, :max_images, :source_kind, CAST(:source AS jsonb), :candidates,
    :unit_price, :fingerprint, :store_url, CAST(:ignored_opt_outs AS jsonb), :verification, :source_detail,
    CAST(:keywords AS jsonb))
RETURNING id
""")
PLACE = text("UPDATE crawl_jobs SET store_url = :root || '/jobs/' || id WHERE id = :job_id")


def create_job(session: Session, request: JobRequest, store_root: str, *, folder: str | None = None) -> int:
    """- → pending. Images go to ``folder`` (a URL), or to the job's own prefix under ``store_root``."""
    parameters = {
        "project_id": request.project_id,
        "name": request.name,
        "priority": request.priority,
        "max_images": request.max_images,
        "source_kind": request.source_kind.value,
        "source": json.dumps(dict(request.source)),
        "candidates": request.candidates,
        "unit_price": request.unit_price,
        "fingerprint": request.fingerprint,
        "verification": request.verification.value,
        "store_url": folder,
        "source_detail": request.source.get("detail"),
        "keywords": request.keywords,
        "ignored_opt_outs": json.dumps(sorted(request.ignored_opt_outs)),
    }
    job_id = int(session.execute(CREATE, parameters).scalar_one())
    if folder is None:
        session.execute(PLACE, {"root": store_root, "job_id": job_id})
    log_activity(session, job_id, "crawl_job.submitted", {"candidates": request.candidates})
    return job_id


CANCEL = text("""
UPDATE crawl_jobs SET cancelled_at = now(),
    status = CASE WHEN source_kind IS NULL THEN 'cancelled' ELSE status END,
    completed_at = CASE WHEN source_kind IS NULL THEN now() END
WHERE id = :job_id AND status IN ('pending', 'running') AND cancelled_at IS NULL RETURNING id
""")
PAUSE = text("""
UPDATE crawl_jobs SET paused_at = now()
WHERE id = :job_id AND status IN ('pending', 'running') AND cancelled_at IS NULL AND paused_at IS NULL RETURNING id
""")
RESUME = text("""
UPDATE crawl_jobs SET paused_at = NULL
WHERE id = :job_id AND status IN ('pending', 'running') AND cancelled_at IS NULL AND paused_at IS NOT NULL
RETURNING id
""")


def cancel_job(session: Session, job_id: int) -> bool:
    """running → cancelling: nothing more is dispatched, workers stop, the scheduler drains and closes.

    A job without a source was made by another service: nobody here would drain it, so it ends at once.
    """
    return _change(session, CANCEL, job_id, "crawl_job.cancelled")


def pause_job(session: Session, job_id: int) -> bool:
    """running → paused: nothing more is dispatched, chunks in flight finish."""
    return _change(session, PAUSE, job_id, "crawl_job.paused")


def resume_job(session: Session, job_id: int) -> bool:
    """paused → running."""
    return _change(session, RESUME, job_id, "crawl_job.resumed")


def _change(session: Session, statement: TextClause, job_id: int, action: str) -> bool:
    if session.execute(statement, {"job_id": job_id}).first() is None:
        return False
    log_activity(session, job_id, action)
    return True


BLOCK = text("""
UPDATE crawl_jobs j SET blocked_reason = :reason FROM projects p
WHERE j.id = :job_id AND p.id = j.project_id AND j.blocked_reason IS NULL RETURNING p.user_id, j.name
""")
BLOCKED_TEXT = {
    BlockedReason.OUT_OF_CREDITS: (
        "Out of credits",
        "has no credits left. It goes on by itself after a top-up.",
    ),
    BlockedReason.MONTHLY_LIMIT: (
        "Monthly limit reached",
        "has reached the account's monthly limit. It goes on by itself next month, or when the limit is raised.",
    ),
}


TOLD = text("""
SELECT FROM notifications
WHERE user_id = :user_id AND category = 'billing' AND metadata->>'job_id' = CAST(CAST(:job_id AS int) AS text)
    AND metadata->>'reason' = :reason
    AND created_at >= greatest(date_trunc('month', now() AT TIME ZONE 'utc') AT TIME ZONE 'utc', (
        SELECT max(settled_at) FROM credit_transactions
        WHERE user_id = :user_id AND type IN ('purchase', 'bonus') AND status = 'completed'))
""")
"""Settlements give credits back, so a job may be blocked many times between two top-ups."""


def block_job(session: Session, job_id: int, reason: BlockedReason) -> bool:
    """running → blocked: out of the claim until ``unblock_jobs``. The owner is told once between two top-ups, or
    two months.
    """
    row = session.execute(BLOCK, {"job_id": job_id, "reason": reason.value}).one_or_none()
    if row is None:
        return False
    told = session.execute(TOLD, {"job_id": job_id, "user_id": row.user_id, "reason": reason.value})
    if told.first() is not None:
        return True
    title, sentence = BLOCKED_TEXT[reason]
    message = f"Job {job_id} '{row.name}' {sentence}"
    details = {"job_id": job_id, "reason": reason.value}
    notify(session, row.user_id, NotificationType.WARNING, "billing", title, message, details)
    return True


UNBLOCK = text(f"""
UPDATE crawl_jobs j SET blocked_reason = NULL
FROM projects p JOIN credit_accounts a ON a.user_id = p.user_id
WHERE p.id = j.project_id AND j.blocked_reason IS NOT NULL AND j.status IN ('pending', 'running')
    AND j.unit_price <= CASE j.blocked_reason WHEN 'out_of_credits' THEN a.current_balance
        ELSE a.monthly_limit - CASE WHEN a.usage_period >= {PERIOD} THEN a.monthly_usage ELSE 0 END END
RETURNING j.id
""")


def unblock_jobs(session: Session) -> list[int]:
    """blocked → running, for jobs whose account has again what they were blocked for.

    When the other thing is missing, dispatch blocks them for that, and says so: a top-up over the monthly limit
    must not leave a job "out of credits".
    """
    return list(session.execute(UNBLOCK).scalars())


STOPPED = text("""
SELECT j.id, j.cancelled_at IS NOT NULL FROM crawl_jobs j
WHERE j.status IN ('pending', 'running') AND j.source_kind IS NOT NULL AND (
    (j.cancelled_at IS NOT NULL
        AND EXISTS (SELECT FROM job_chunks c WHERE c.job_id = j.id AND c.status = 'pending'))
    OR (j.paused_at IS NOT NULL AND j.id IN (
        SELECT c.job_id FROM credit_transactions t JOIN job_chunks c ON c.id = t.chunk_id
        WHERE t.type = 'usage' AND t.status = 'pending' AND c.status = 'pending'))
    OR (j.blocked_reason IS NOT NULL AND j.id IN (
        SELECT c.job_id FROM credit_transactions t JOIN job_chunks c ON c.id = t.chunk_id
        WHERE t.type = 'usage' AND t.status = 'pending' AND c.status = 'pending' AND c.queued_at IS NULL)))
ORDER BY j.id
""")
"""There are few open holds, so a thousand paused jobs cost one look at them."""


def stopped_jobs(session: Session) -> list[tuple[int, bool]]:
    """Jobs that are cancelled (True) and have a chunk that no worker has, or paused (False) and hold credits
    for one, or blocked (False) and hold some for one that came back.
    """
    return [(job_id, cancelled) for job_id, cancelled in session.execute(STOPPED)]


CLOSE = text("""
WITH ended AS (
    SELECT j.id FROM crawl_jobs j
    WHERE j.status IN ('pending', 'running') AND j.source_state IN ('exhausted', 'satisfied')
        AND j.completed_chunks + j.failed_chunks = j.total_chunks
    ORDER BY j.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
UPDATE crawl_jobs j SET completed_at = now(), blocked_reason = NULL, paused_at = NULL, reprioritized_at = NULL,
    task_ids = '[]', started_at = coalesce(j.started_at, now()),
    status = CASE WHEN j.cancelled_at IS NOT NULL THEN 'cancelled' WHEN j.failed_chunks > 0 THEN 'failed'
        ELSE 'completed' END,
    progress = CASE WHEN j.cancelled_at IS NULL AND j.failed_chunks = 0 THEN 100 ELSE j.progress END
FROM ended, projects p WHERE j.id = ended.id AND p.id = j.project_id
RETURNING j.id, j.name, j.status, j.valid_images, j.failed_images, j.unit_price, p.user_id,
    j.source_detail
""")
CLOSED_TYPE = {
    JobStatus.COMPLETED: NotificationType.SUCCESS,
    JobStatus.FAILED: NotificationType.ERROR,
    JobStatus.CANCELLED: NotificationType.INFO,
}


def close_job(session: Session) -> int | None:
    """running → completed, failed or cancelled: one job whose source yields no more and whose chunks all
    ended, with its notification. Returns the job, or None when there is none.
    """
    row = session.execute(CLOSE).one_or_none()
    if row is None:
        return None
    status = JobStatus(row.status)
    title = f"Job {status.value}: {row.name}"[:255]
    message = (
        f"{row.valid_images} images accepted for {row.valid_images * row.unit_price} credits, "
        f"{row.failed_images} candidates without an image."
    )
    if row.source_detail:
        message += f" The source: {row.source_detail}."
    notify(session, row.user_id, CLOSED_TYPE[status], "crawl_job", title, message, {"job_id": row.id})
    log_activity(session, row.id, f"crawl_job.{status.value}", {"valid_images": row.valid_images})
    return int(row.id)


FOLDER = text("SELECT store_url FROM crawl_jobs WHERE id = :job_id")


def folder_of(session: Session, job_id: int) -> str | None:
    """Where a job's images are stored, as a URL."""
    url: str | None = session.execute(FOLDER, {"job_id": job_id}).scalar_one()
    return url


REFRESH_TASKS = text(f"""
WITH live AS (
    SELECT c.job_id, jsonb_agg(c.task_id ORDER BY c.id) AS ids FROM job_chunks c WHERE {LIVE} GROUP BY c.job_id),
changed AS MATERIALIZED (
    SELECT j.id, coalesce(live.ids, '[]') AS ids FROM crawl_jobs j LEFT JOIN live ON live.job_id = j.id
    WHERE j.status IN ('pending', 'running') AND j.source_kind IS NOT NULL
        AND j.task_ids <> coalesce(live.ids, '[]'))
UPDATE crawl_jobs j SET task_ids = changed.ids FROM changed
WHERE j.id = changed.id AND j.status IN ('pending', 'running')
""")


def refresh_task_ids(session: Session) -> None:
    """Write the Celery ids of the chunks in flight into their jobs; at most once a second."""
    session.execute(REFRESH_TASKS)


NOTIFY = text("""
INSERT INTO notifications (user_id, type, category, title, message, metadata)
VALUES (:user_id, :type, :category, :title, :message, CAST(:details AS jsonb))
""")


def notify(
    session: Session,
    user_id: uuid.UUID,
    kind: NotificationType,
    category: str,
    title: str,
    message: str,
    details: Mapping[str, Any],
) -> None:
    """Tell a user something."""
    parameters = {"user_id": user_id, "type": kind.value, "category": category, "title": title}
    session.execute(NOTIFY, parameters | {"message": message, "details": json.dumps(dict(details))})


LOG_ACTIVITY = text("""
INSERT INTO activity_logs (user_id, action, resource_type, resource_id, metadata)
SELECT p.user_id, :action, 'crawl_job', CAST(j.id AS text), CAST(:details AS jsonb)
FROM crawl_jobs j JOIN projects p ON p.id = j.project_id WHERE j.id = :job_id
""")


def log_activity(
    session: Session, job_id: int, action: str, details: Mapping[str, Any] | None = None
) -> None:
    """Write a line of the owner's activity about a job."""
    document = json.dumps(dict(details or {}))
    session.execute(LOG_ACTIVITY, {"job_id": job_id, "action": action, "details": document})
