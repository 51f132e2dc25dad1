"""Auto-refill: an account buys credits when it runs low. The arrows: open, complete, decline, give up.

A refill is a pending purchase; its id is the key by which the payment service knows the payment. The functions take
a Session and never commit; scheduler/refills.py asks the service, outside any transaction.
"""

import uuid
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.credits import COMING_BACK, CREDITS_MAX
from models.job_lifecycle import notify
from models.notifications import NotificationType

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 900, 86_400
"""After a decline; doubled by each further one in a row."""


@dataclass(frozen=True, slots=True)
class Refill:
    """A refill whose payment is not known: perhaps not asked for, perhaps paid."""

    id: uuid.UUID
    account_id: uuid.UUID
    user_id: uuid.UUID
    email: str
    credits: int


PAID_TODAY = """t.account_id = a.id AND t.refill AND t.status = 'completed'
    AND t.created_at >= date_trunc('day', now() AT TIME ZONE 'utc') AT TIME ZONE 'utc'"""
"""Whether ``t`` is a refill of account ``a`` that counts against today's."""
MAY_REFILL = f"""a.auto_refill_enabled AND a.closing_at IS NULL AND coalesce(a.refill_after <= now(), true)
    AND :per_day_max > (SELECT count(*) FROM credit_transactions t WHERE {PAID_TODAY})"""
"""Whether an account ``a`` may buy at all now."""
OPEN = text(f"""
WITH stuck AS (
    SELECT p.user_id FROM crawl_jobs j JOIN projects p ON p.id = j.project_id
        JOIN credit_accounts a ON a.user_id = p.user_id
    WHERE j.status IN ('pending', 'running') AND j.blocked_reason = 'out_of_credits'
        AND j.paused_at IS NULL AND j.cancelled_at IS NULL AND a.current_balance < j.unit_price),
low AS (
    SELECT a.id, a.user_id, a.refill_amount, a.current_balance FROM credit_accounts a
    WHERE {MAY_REFILL}
        AND (a.current_balance < a.refill_threshold OR a.user_id IN (SELECT user_id FROM stuck))
        AND a.current_balance + CAST(a.refill_amount AS bigint) + {COMING_BACK} <= {CREDITS_MAX}
        AND NOT EXISTS (SELECT FROM credit_transactions t
            WHERE t.account_id = a.id AND t.refill AND t.status = 'pending')
    LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED)
INSERT INTO credit_transactions (account_id, user_id, type, description, amount, balance_after, status, refill)
SELECT id, user_id, 'purchase', 'Auto-refill', refill_amount, current_balance, 'pending', true FROM low
ON CONFLICT (account_id) WHERE refill AND status = 'pending' DO NOTHING
RETURNING id
""")


def open_refills(session: Session, per_day_max: int, limit: int = 100) -> list[uuid.UUID]:
    """- → pending, for accounts that want a refill: the balance is under their threshold, or under what a blocked
    job of theirs needs. Credits that are held count as spent: work should not wait for them to come back.

    One at a time for each account (a partial unique index), ``per_day_max`` paid ones a day (UTC), none while a
    declined one is recent, none for a user who is being deleted.
    """
    return list(session.execute(OPEN, {"per_day_max": per_day_max, "limit": limit}).scalars())


PENDING = text("""
SELECT t.id, t.account_id, t.user_id, u.email, t.amount
FROM credit_transactions t JOIN profiles u ON u.id = t.user_id
WHERE t.refill AND t.status = 'pending' AND (CAST(:user_id AS uuid) IS NULL OR t.user_id = :user_id)
ORDER BY t.created_at LIMIT :limit
""")


def pending_refills(session: Session, user_id: uuid.UUID | None = None, limit: int = 1000) -> list[Refill]:
    """Refills whose payment is not known yet, the oldest first; those of one user, or of all."""
    rows = session.execute(PENDING, {"user_id": user_id, "limit": limit})
    return [Refill(*row) for row in rows]


LOCK_ACCOUNT = text("""
SELECT FROM credit_accounts a JOIN credit_transactions t ON t.account_id = a.id
WHERE t.id = :id FOR NO KEY UPDATE OF a
""")
COMPLETE = text("""
WITH paid AS (
    UPDATE credit_transactions t SET status = 'completed', balance_after = a.current_balance + t.amount,
        settled_at = now(), metadata = coalesce(t.metadata, '{}') || jsonb_build_object('payment', :payment)
    FROM credit_accounts a WHERE t.id = :id AND t.refill AND t.status = 'pending' AND a.id = t.account_id
    RETURNING t.account_id, t.amount, t.balance_after)
UPDATE credit_accounts a SET current_balance = a.current_balance + paid.amount,
    refill_declines = 0, refill_after = NULL
FROM paid WHERE a.id = paid.account_id RETURNING a.user_id, paid.amount, a.current_balance
""")
DECLINE = text("""
WITH declined AS (
    UPDATE credit_transactions t SET status = 'failed', balance_after = a.current_balance, settled_at = now(),
        metadata = coalesce(t.metadata, '{}') || jsonb_build_object('declined', :reason)
    FROM credit_accounts a WHERE t.id = :id AND t.refill AND t.status = 'pending' AND a.id = t.account_id
    RETURNING t.account_id, t.amount)
UPDATE credit_accounts a SET refill_declines = a.refill_declines + 1,
    refill_after = now() + make_interval(secs => least(:most, :pause * power(2, least(a.refill_declines, 20))))
FROM declined WHERE a.id = declined.account_id RETURNING a.user_id, declined.amount, a.refill_declines
""")
GIVE_UP = text("""
UPDATE credit_transactions t SET status = 'cancelled', balance_after = a.current_balance, settled_at = now()
FROM credit_accounts a WHERE t.id = :id AND t.refill AND t.status = 'pending' AND a.id = t.account_id RETURNING t.id
""")


def complete_refill(session: Session, refill_id: uuid.UUID, payment: str) -> bool:
    """pending → completed: it was paid (``payment`` is the service's name of it), and the credits are there.

    False when the refill is not pending any more, or is gone. Jobs that wait for credits go on by themselves.
    """
    session.execute(LOCK_ACCOUNT, {"id": refill_id})
    row = session.execute(COMPLETE, {"id": refill_id, "payment": payment}).one_or_none()
    if row is None:
        return False
    message = (
        f"{row.amount:,} credits were bought (payment {payment}). The balance is {row.current_balance:,}."
    )
    details = {"refill": str(refill_id), "payment": payment}
    notify(session, row.user_id, NotificationType.SUCCESS, "billing", "Credits refilled", message, details)
    return True


def decline_refill(session: Session, refill_id: uuid.UUID, reason: str) -> bool:
    """pending → failed: the service refused. The next refill waits, longer with each decline in a row; the owner is
    told of the first. False when the refill is not pending any more.
    """
    session.execute(LOCK_ACCOUNT, {"id": refill_id})
    parameters = {"id": refill_id, "reason": reason, "pause": PAUSE_SECONDS, "most": PAUSE_SECONDS_MAX}
    row = session.execute(DECLINE, parameters).one_or_none()
    if row is None:
        return False
    if row.refill_declines == 1:
        message = (
            f"{row.amount:,} credits could not be bought: {reason}. It is tried again, less often each time, "
            "until it succeeds or auto-refill is switched off."
        )
        details = {"refill": str(refill_id), "declined": reason}
        notify(
            session, row.user_id, NotificationType.ERROR, "billing", "Auto-refill declined", message, details
        )
    return True


def give_up_refill(session: Session, refill_id: uuid.UUID) -> bool:
    """pending → cancelled: an operator knows that it was never paid. False when it is not pending any more."""
    session.execute(LOCK_ACCOUNT, {"id": refill_id})
    return session.execute(GIVE_UP, {"id": refill_id}).first() is not None


COMING = text(f"""
SELECT EXISTS (SELECT FROM credit_accounts a JOIN profiles u ON u.id = a.user_id
    WHERE u.email = :email AND (({MAY_REFILL}) OR EXISTS (
        SELECT FROM credit_transactions t WHERE t.account_id = a.id AND t.refill AND t.status = 'pending')))
""")


def refill_coming(session: Session, email: str, per_day_max: int) -> bool:
    """Whether waiting is worth while for somebody who is out of credits: a refill is pending, or will be."""
    return bool(session.execute(COMING, {"email": email, "per_day_max": per_day_max}).scalar_one())


CONFIGURE = text("""
UPDATE credit_accounts SET auto_refill_enabled = coalesce(:enabled, auto_refill_enabled),
    refill_threshold = coalesce(:threshold, refill_threshold), refill_amount = coalesce(:amount, refill_amount),
    refill_declines = 0, refill_after = NULL
WHERE user_id = :user_id AND closing_at IS NULL RETURNING id
""")


def configure_refill(
    session: Session,
    user_id: uuid.UUID,
    *,
    enabled: bool | None = None,
    threshold: int | None = None,
    amount: int | None = None,
) -> bool:
    """Change when and how much an account buys; declines so far are forgotten. False without an open account."""
    parameters = {"user_id": user_id, "enabled": enabled, "threshold": threshold, "amount": amount}
    return session.execute(CONFIGURE, parameters).first() is not None


WISHES = text("""
SELECT count(*), (
    SELECT count(*) FROM credit_transactions t
    WHERE t.refill AND t.status = 'pending' AND t.created_at < now() - make_interval(secs => :seconds))
FROM credit_accounts a WHERE a.auto_refill_enabled AND a.closing_at IS NULL
""")


def refill_wishes(session: Session, seconds: float) -> tuple[int, int]:
    """(accounts with auto-refill on, refills whose payment is unknown for more than ``seconds``)."""
    wishes, unknown = session.execute(WISHES, {"seconds": seconds}).one()
    return wishes, unknown
