"""The nightly figure: what an account is charged a day. It takes a Session and never commits."""

import datetime
import uuid
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

DAYS = 30
FIRST = uuid.UUID(int=0)
"""Stands before every account."""
AVERAGE = text(f"""
WITH day AS (SELECT CAST(now() AT TIME ZONE 'utc' AS date) AS today),
page AS MATERIALIZED (
    SELECT id, coalesce(averaged_on < today, true) AS due
    FROM credit_accounts CROSS JOIN day WHERE id > :after ORDER BY id LIMIT :limit),
locked AS MATERIALIZED (
    SELECT a.id, greatest(today - {DAYS}, least(today - 1, CAST(a.created_at AT TIME ZONE 'utc' AS date))) AS first
    FROM credit_accounts a CROSS JOIN day
    WHERE a.id = ANY(ARRAY(SELECT id FROM page WHERE due)) AND coalesce(a.averaged_on < today, true)
    FOR NO KEY UPDATE OF a SKIP LOCKED),
averaged AS (
    UPDATE credit_accounts a SET averaged_on = today, average_daily_usage = least(99999999.99, (
        SELECT coalesce(-sum(t.amount), 0) FROM credit_transactions t
        WHERE t.account_id = locked.id AND t.type = 'usage' AND t.status = 'completed'
            AND coalesce(t.settled_at, t.created_at) >= CAST(locked.first AS timestamp) AT TIME ZONE 'utc'
            AND coalesce(t.settled_at, t.created_at) < CAST(today AS timestamp) AT TIME ZONE 'utc'
        ) / CAST(today - locked.first AS numeric))
    FROM locked CROSS JOIN day WHERE a.id = locked.id RETURNING a.id)
SELECT today, (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM averaged) AS averaged,
    (SELECT count(*) FROM page WHERE due) AS due
FROM day
""")


@dataclass(frozen=True, slots=True)
class AveragedPage:
    """``last`` is the last account of the page, None when there was none. ``skipped`` accounts were in use."""

    today: datetime.date
    last: uuid.UUID | None
    averaged: int
    skipped: int


def average_page(session: Session, after: uuid.UUID, limit: int) -> AveragedPage:
    """The next accounts behind ``after``: those without today's mark get it and their average: credits charged
    over the last 30 full days (UTC), or over the full days since a younger account was made.

    It is computed from the ledger, so days without a scheduler leave nothing behind. An account that somebody
    has locked is passed over.
    """
    row = session.execute(AVERAGE, {"after": after, "limit": limit}).one()
    return AveragedPage(row.today, row.last, row.averaged, row.due - row.averaged)
