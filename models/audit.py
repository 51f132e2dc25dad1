"""What a job and an account must add up to, read from the rows themselves and not from counters."""

import uuid
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.orm import Session

OUTCOMES = text("""
SELECT position, 'accepted' FROM images WHERE crawl_job_id = :job_id
UNION ALL
SELECT generate_series(position, position_end), reason FROM failures WHERE job_id = :job_id
""")


def outcomes(session: Session, job_id: int) -> dict[int, str]:
    """'accepted' or the reason of failure of every position that has an outcome."""
    return {position: str(outcome) for position, outcome in session.execute(OUTCOMES, {"job_id": job_id})}


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Which object a row names, and the digest that its bytes must have."""

    position: int
    url: str
    sha256: bytes


IMAGES = text(
    "SELECT position, storage_url, sha256 FROM images WHERE crawl_job_id = :job_id ORDER BY position"
)


def images(session: Session, job_id: int) -> list[StoredImage]:
    """The accepted images of a job in the order of its candidates."""
    rows = session.execute(IMAGES, {"job_id": job_id})
    return [StoredImage(position, url, bytes(sha256)) for position, url, sha256 in rows]


@dataclass(frozen=True, slots=True)
class Statement:
    """One account in credits. ``granted`` came in; ``held`` was taken for chunks, of which ``charged`` was spent
    and ``released`` given back; ``open`` is still held. ``balance`` is what the account says. ``closing``: the
    user is being deleted, so some transactions are gone already.
    """

    granted: int
    holds: int
    held: int
    charged: int
    released: int
    open: int
    balance: int
    closing: bool = field(default=False, kw_only=True)

    @property
    def correct(self) -> bool:
        """Whether the balance is explained by its transactions. One that is being deleted explains nothing."""
        return self.closing or (
            self.balance == self.granted - self.charged - self.open
            and self.held == self.charged + self.released + self.open
        )


STATEMENT = text("""
SELECT
    coalesce(sum(t.amount) FILTER (WHERE t.type <> 'usage' AND t.status = 'completed'), 0),
    count(*) FILTER (WHERE t.type = 'usage'),
    coalesce(sum(t.held) FILTER (WHERE t.type = 'usage'), 0),
    coalesce(-sum(t.amount) FILTER (WHERE t.type = 'usage' AND t.status = 'completed'), 0),
    coalesce(sum(t.held) FILTER (WHERE t.type = 'usage' AND t.status = 'cancelled'), 0)
        + coalesce(sum(t.held + t.amount) FILTER (WHERE t.type = 'usage' AND t.status = 'completed'), 0),
    coalesce(-sum(t.amount) FILTER (WHERE t.type = 'usage' AND t.status = 'pending'), 0),
    a.current_balance, a.closing_at IS NOT NULL
FROM credit_accounts a LEFT JOIN credit_transactions t ON t.account_id = a.id
WHERE a.user_id = :user_id GROUP BY a.id
""")


def statement(session: Session, user_id: uuid.UUID) -> Statement:
    """What happened on an account, from its transactions."""
    *figures, closing = session.execute(STATEMENT, {"user_id": user_id}).one()
    return Statement(*(int(value) for value in figures), closing=closing)
