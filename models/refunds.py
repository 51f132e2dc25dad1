"""Refunds: credits that a job cost, given back. A refund never exceeds what the job was charged, all together.

The functions take a Session and never commit. The ledger outlives jobs, so a deleted job can be refunded, too.
"""

import uuid
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.accounts import TransactionType
from models.credits import ENTRY, LOCK_ACCOUNT, REPEATED, Added, CreditError, taken
from models.job_lifecycle import notify
from models.notifications import NotificationType

PAYER = text("""
SELECT user_id, unit_price FROM credit_transactions WHERE job_id = :job_id AND type = 'usage'
ORDER BY created_at DESC LIMIT 1
""")
REFUND = text(f"""
WITH job AS (
    SELECT coalesce(-sum(amount) FILTER (WHERE type = 'usage'), 0) AS charged,
        coalesce(sum(amount) FILTER (WHERE type = 'refund'), 0) AS refunded
    FROM credit_transactions WHERE job_id = :job_id AND status = 'completed'),
due AS (
    SELECT CAST(coalesce(CAST(:amount AS int), charged - refunded) AS int) AS amount FROM job
    WHERE coalesce(CAST(:amount AS int), 0) <= charged - refunded),
{ENTRY}
SELECT job.charged, job.refunded, added.id, added.amount, added.balance_after FROM job LEFT JOIN added ON true
""")


@dataclass(frozen=True, slots=True)
class Refund:
    """What was given back. ``charged`` and ``refunded`` are the job's sums, with this refund."""

    added: Added
    user_id: uuid.UUID
    amount: int
    charged: int
    refunded: int


def payer(session: Session, job_id: int) -> tuple[uuid.UUID, int]:
    """(who paid for a job, what an image cost). Raises CreditError when nothing was ever held for it."""
    row = session.execute(PAYER, {"job_id": job_id}).one_or_none()
    if row is None:
        raise CreditError(f"Nothing was ever charged for a job {job_id}: `pixtrawl jobs` lists jobs.")
    return row.user_id, row.unit_price or 1


def refund_job(
    session: Session, job_id: int, amount: int | None, reason: str, *, reference: str | None = None
) -> Refund:
    """- → completed: give ``amount`` credits of a job's charges back, or all that were not yet; its owner is told.

    The account is locked first, so the statement sees every refund before it: ten at once give back no more than
    was charged. The month's usage stays: it is what the month's crawling took, whatever became of it later.
    Raises CreditError when so much was not charged, when the account takes none, or for a reference of another.
    """
    user_id, _ = payer(session, job_id)
    session.execute(LOCK_ACCOUNT, {"user_id": user_id})
    parameters: dict[str, object] = {"user_id": user_id, "job_id": job_id, "amount": amount}
    parameters |= {"type": TransactionType.REFUND.value, "description": reason, "reference": reference}
    before = session.execute(REPEATED, parameters).one_or_none()
    if before is not None and (before.job_id != job_id or amount not in (None, before.amount)):
        raise CreditError(taken(TransactionType.REFUND, reference, before.amount))
    if before is not None:
        job = session.execute(REFUND, parameters | {"amount": 0}).one()
        added = Added(before.id, before.balance_after, repeated=True)
        return Refund(added, user_id, before.amount, int(job.charged), int(job.refunded))
    row = session.execute(REFUND, parameters).one()
    if row.id is None:
        raise CreditError(_why_not(job_id, amount, int(row.charged), int(row.refunded)))
    tell(session, user_id, job_id, row.amount, reason)
    refunded = int(row.refunded) + row.amount
    return Refund(Added(row.id, row.balance_after), user_id, row.amount, int(row.charged), refunded)


def _why_not(job_id: int, amount: int | None, charged: int, refunded: int) -> str:
    left = charged - refunded
    if left <= 0:
        return f"Job {job_id} has nothing left to refund: {charged:,} credits charged, {refunded:,} refunded."
    if amount is not None and amount > left:
        return (
            f"Job {job_id} was charged {charged:,} credits and {refunded:,} are refunded: "
            f"{left:,} more can be at most."
        )
    return (
        f"The account of job {job_id} takes no refund: it is being deleted, or would hold too many credits."
    )


def tell(session: Session, user_id: uuid.UUID, job_id: int, amount: int, reason: str) -> None:
    """Tell the owner."""
    message = f"{amount:,} credits of job {job_id} were given back: {reason}"
    details = {"job_id": job_id, "refunded": amount}
    notify(session, user_id, NotificationType.INFO, "billing", "Credits refunded", message, details)
