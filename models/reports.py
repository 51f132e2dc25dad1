"""What commands show: one query for each report, answered from counters and indexes, never from the images.

Rows come back as dictionaries that are JSON as they are: times as ISO 8601 text, UUIDs as text. Changes nothing.
"""

import datetime
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from models.credits import PERIOD
from models.refills import PAID_TODAY
from models.workers import live_workers as live_workers  # noqa: PLC0414 - commands find their reports here

JOB_COLUMNS = """
SELECT j.id, j.name, p.id AS project_id, p.name AS project, u.email AS "user", j.status, j.blocked_reason,
    j.paused_at IS NOT NULL AS paused, j.cancelled_at IS NOT NULL AS cancelled,
    j.deleting_at IS NOT NULL AS deleting, j.progress, j.priority, j.verification,
    j.max_images, j.total_images, j.downloaded_images, j.valid_images, j.failed_images,
    j.source_kind, j.source_state, j.source_detail, j.source_wait, j.source_available_at, j.keywords,
    j.total_chunks, j.active_chunks, j.completed_chunks, j.failed_chunks, j.failures,
    jsonb_build_object('held', holds.held, 'charged', CASE WHEN j.source_kind IS NULL THEN 0
        ELSE CAST(j.valid_images AS bigint) * j.unit_price - holds.uncharged END) AS credits,
    j.stored_bytes AS bytes, j.wire_bytes, j.store_url, j.ignored_opt_outs,
    j.created_at, j.started_at, j.completed_at,
    CAST(extract(epoch FROM coalesce(j.completed_at, now()) - j.started_at) AS float8)
        AS duration_seconds
FROM crawl_jobs j JOIN projects p ON p.id = j.project_id JOIN profiles u ON u.id = p.user_id
CROSS JOIN LATERAL (
    SELECT coalesce(-sum(t.amount), 0) AS held,
        coalesce(sum(c.accepted * t.unit_price + (
            SELECT coalesce(sum(amount), 0) FROM credit_transactions
            WHERE chunk_id = t.chunk_id AND type = 'usage' AND status = 'completed')), 0) AS uncharged
    FROM credit_transactions t LEFT JOIN job_chunks c ON c.id = t.chunk_id
    WHERE t.job_id = j.id AND t.type = 'usage' AND t.status = 'pending') holds
"""
"""A job's transactions are too many to be added up. Every image of ours is charged, but for those that a chunk
with an open hold accepted since it was charged last: credits.py keeps to that, and audit.py compares.
"""
JOB = text(f"{JOB_COLUMNS} WHERE j.id = :job_id")
JOBS = text(f"""
WITH listed AS MATERIALIZED (
    SELECT j.id FROM crawl_jobs j JOIN projects p ON p.id = j.project_id JOIN profiles u ON u.id = p.user_id
    WHERE (CAST(:status AS text) IS NULL OR j.status = :status)
        AND (CAST(:project AS text) IS NULL OR p.name = :project OR CAST(p.id AS text) = :project)
        AND (CAST(:user AS text) IS NULL OR u.email = :user)
    ORDER BY j.id DESC LIMIT :limit)
{JOB_COLUMNS} WHERE j.id = ANY(ARRAY(SELECT id FROM listed)) ORDER BY j.id DESC
""")


def job_report(session: Session, job_id: int) -> dict[str, Any] | None:
    """The object of ``show --json``; None when there is no such job. ``bytes`` are those stored."""
    reports = _reports(session, JOB, {"job_id": job_id})
    return reports[0] if reports else None


def job_reports(
    session: Session,
    *,
    status: str | None = None,
    project: str | None = None,
    user: str | None = None,
    limit: int = 20,
) -> list[dict[str, Any]]:
    """The newest jobs first; ``project`` is an id or a name, ``user`` an e-mail."""
    filters = {"status": status, "project": project, "user": user, "limit": limit}
    return _reports(session, JOBS, filters)


CHUNKS = text("""
SELECT c.id, c.chunk_index, CASE WHEN c.status <> 'pending' THEN c.status WHEN c.queued_at IS NOT NULL THEN 'queued'
        WHEN c.available_at IS NOT NULL THEN 'parked' ELSE c.status END AS status,
    c.image_range, c.size AS candidates, c.accepted, c.failed, c.priority, c.attempt, c.retry_count, c.worker,
    c.lease_until, c.available_at, c.error_message, c.updated_at
FROM job_chunks c WHERE c.job_id = :job_id ORDER BY c.chunk_index
""")


def chunk_reports(session: Session, job_id: int) -> list[dict[str, Any]]:
    """Every chunk of a job in the order of its source; a pending one may be ``queued`` or ``parked``."""
    return _reports(session, CHUNKS, {"job_id": job_id})


ACCOUNT = text(f"""
SELECT u.email AS "user", a.current_balance AS balance, holds.held,
    CASE WHEN a.usage_period >= {PERIOD} THEN a.monthly_usage ELSE 0 END AS monthly_usage, a.monthly_limit,
    a.average_daily_usage, jsonb_build_object('enabled', a.auto_refill_enabled, 'threshold', a.refill_threshold,
        'amount', a.refill_amount, 'declines', a.refill_declines, 'pending', (
            SELECT t.id FROM credit_transactions t WHERE t.account_id = a.id AND t.refill AND t.status = 'pending'),
        'paid_today', (SELECT count(*) FROM credit_transactions t WHERE {PAID_TODAY}))
        AS auto_refill, a.refill_after
FROM profiles u JOIN credit_accounts a ON a.user_id = u.id
CROSS JOIN LATERAL (
    SELECT coalesce(-sum(t.amount), 0) AS held FROM credit_transactions t
    WHERE t.account_id = a.id AND t.type = 'usage' AND t.status = 'pending') holds
WHERE u.email = :email
""")
HISTORY = text("""
SELECT t.id, t.created_at, t.settled_at, t.type, t.status, t.amount, t.balance_after, t.job_id, t.chunk_id,
    t.description, t.reference, t.metadata->>'payment' AS payment, t.metadata->>'declined' AS declined
FROM credit_transactions t WHERE t.user_id = (SELECT id FROM profiles WHERE email = :email)
ORDER BY t.created_at DESC, t.id LIMIT :limit
""")


def account_report(session: Session, email: str) -> dict[str, Any] | None:
    """Balance (free to spend), open holds and the month's use of one account; None when there is none."""
    reports = _reports(session, ACCOUNT, {"email": email})
    return reports[0] if reports else None


def credit_history(session: Session, email: str, limit: int) -> list[dict[str, Any]]:
    """The newest transactions of one account first."""
    return _reports(session, HISTORY, {"email": email, "limit": limit})


USERS = text("""
SELECT u.id, u.email, u.full_name, u.role, u.user_tier AS tier, a.current_balance AS balance,
    a.monthly_limit, a.closing_at, u.created_at
FROM profiles u LEFT JOIN credit_accounts a ON a.user_id = u.id ORDER BY u.created_at, u.email
""")
PROJECTS = text("""
SELECT p.id, p.name, u.email AS "user", p.status, jobs.total AS jobs, p.created_at
FROM projects p JOIN profiles u ON u.id = p.user_id
CROSS JOIN LATERAL (SELECT count(*) AS total FROM crawl_jobs j WHERE j.project_id = p.id) jobs
WHERE CAST(:user AS text) IS NULL OR u.email = :user ORDER BY p.id
""")
NOTIFICATIONS = text("""
SELECT n.id, n.created_at, n.type, n.category, n.title, n.message, n.is_read, n.metadata
FROM notifications n WHERE n.user_id = (SELECT id FROM profiles WHERE email = :email)
ORDER BY n.created_at DESC, n.id DESC LIMIT :limit
""")


def user_reports(session: Session) -> list[dict[str, Any]]:
    """Every profile with its balance."""
    return _reports(session, USERS, {})


def project_reports(session: Session, user: str | None = None) -> list[dict[str, Any]]:
    """Every project, or those of the user with this e-mail."""
    return _reports(session, PROJECTS, {"user": user})


def notification_reports(session: Session, email: str, limit: int) -> list[dict[str, Any]]:
    """The newest notifications of one user first."""
    return _reports(session, NOTIFICATIONS, {"email": email, "limit": limit})


SAME_REQUEST = text("""
SELECT id FROM crawl_jobs WHERE project_id = :project_id AND fingerprint = :fingerprint AND cancelled_at IS NULL
    AND deleting_at IS NULL
ORDER BY id DESC LIMIT 1
""")


def find_same_request(session: Session, project_id: int, fingerprint: str) -> int | None:
    """The newest job, not cancelled, for the same input and options in the same project."""
    parameters = {"project_id": project_id, "fingerprint": fingerprint}
    return session.execute(SAME_REQUEST, parameters).scalar_one_or_none()


def _reports(session: Session, query: TextClause, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = session.execute(query, parameters)
    names = list(rows.keys())
    return [{name: _plain(name, value) for name, value in zip(names, row, strict=True)} for row in rows]


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Decimal) and name == "average_daily_usage":
        return float(value)
    return int(value) if name == "held" else value
