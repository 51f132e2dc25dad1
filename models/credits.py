"""The ledger's statements: grant, hold, settle; refunds.py and refills.py have the others.

They take a Session, lock the account last, and never commit. Always true afterwards: ``current_balance`` = Σ amount
of completed rows and of pending usage rows.
"""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.accounts import TransactionType
from models.jobs import BlockedReason

CREDITS_MAX = 2_147_483_647
PERIOD = "to_char(now() AT TIME ZONE 'utc', 'YYYY-MM')"
"""The month as a key that only moves forward; a hold remembers the one it was counted in."""
PAID = """(SELECT coalesce(-sum(t.amount), 0) FROM credit_transactions t
    WHERE t.chunk_id = c.id AND t.type = 'usage' AND t.status IN ('pending', 'completed'))"""
"""Credits charged and held for the chunk ``c``."""


class CreditError(Exception):
    """Credits cannot be moved as asked. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What a hold is for: the worst case of one chunk, ``amount`` credits at ``unit_price`` each."""

    account_id: uuid.UUID
    user_id: uuid.UUID
    job_id: int
    chunk_id: int
    amount: int
    unit_price: int


LOCK_ACCOUNT = text("SELECT FROM credit_accounts WHERE user_id = :user_id FOR NO KEY UPDATE")
COMING_BACK = """
(SELECT coalesce(sum(t.held), 0) FROM credit_transactions t
    WHERE t.account_id = a.id AND t.type = 'usage' AND t.status = 'pending')
+ (SELECT coalesce(sum(t.amount), 0) FROM credit_transactions t
    WHERE t.account_id = a.id AND t.refill AND t.status = 'pending')
"""
"""What may still be added to an account ``a``: all that is held, and a refill whose payment is not known yet."""
ENTRY = f"""
added AS (
    INSERT INTO credit_transactions (account_id, user_id, type, description, amount, balance_after, status,
        settled_at, job_id, reference)
    SELECT a.id, a.user_id, :type, :description, due.amount, a.current_balance + due.amount, 'completed', now(),
        :job_id, :reference
    FROM credit_accounts a CROSS JOIN due
    WHERE a.user_id = :user_id AND a.closing_at IS NULL AND due.amount > 0
        AND a.current_balance + CAST(due.amount AS bigint) + {COMING_BACK} <= {CREDITS_MAX}
    ON CONFLICT (type, reference) WHERE reference IS NOT NULL DO NOTHING
    RETURNING id, account_id, amount, balance_after),
moved AS (
    UPDATE credit_accounts a SET current_balance = a.current_balance + added.amount FROM added
    WHERE a.id = added.account_id)
"""
"""Credits that come in: a completed line of the ledger for ``due.amount``, and the balance with it. The account
must be locked by an earlier statement: this one then sees what others did before.
"""
ADD = text(
    f"WITH due AS (SELECT CAST(:amount AS int) AS amount), {ENTRY} SELECT id, balance_after FROM added"
)
REPEATED = text("""
SELECT t.id, t.user_id, t.job_id, t.amount, t.balance_after FROM credit_transactions t
WHERE t.type = :type AND t.reference = :reference
""")


@dataclass(frozen=True, slots=True)
class Added:
    """A line of the ledger that added credits. ``repeated``: it did so before, and this time nothing changed."""

    id: uuid.UUID
    balance: int
    repeated: bool = False


def grant(
    session: Session,
    user_id: uuid.UUID,
    amount: int,
    *,
    kind: TransactionType = TransactionType.BONUS,
    description: str,
    reference: str | None = None,
) -> int:
    """- → completed: add ``amount`` credits to a user's account and return the balance; see ``add_credits``."""
    return add_credits(session, user_id, amount, kind, description, reference).balance


def add_credits(
    session: Session,
    user_id: uuid.UUID,
    amount: int,
    kind: TransactionType,
    description: str,
    reference: str | None,
) -> Added:
    """- → completed: ``amount`` credits more, once for each ``reference`` of a kind.

    Raises CreditError when the user has no account or is being deleted, when it would have more than CREDITS_MAX,
    all that may come back included, or when the reference stands for something else.
    """
    session.execute(LOCK_ACCOUNT, {"user_id": user_id})
    parameters: dict[str, object] = {"user_id": user_id, "amount": amount, "type": kind.value}
    parameters |= {"description": description, "job_id": None, "reference": reference}
    row = session.execute(ADD, parameters).one_or_none()
    if row is not None:
        return Added(row.id, row.balance_after)
    before = session.execute(REPEATED, parameters).one_or_none()
    if before is None:
        raise CreditError(
            f"Profile {user_id} has no credit account that can take {amount:,} credits: "
            f"an account holds {CREDITS_MAX:,} at most, and one that is being deleted takes none."
        )
    if (before.user_id, before.amount) != (user_id, amount):
        raise CreditError(taken(kind, reference, before.amount, elsewhere=before.user_id != user_id))
    return Added(before.id, before.balance_after, repeated=True)


def taken(kind: TransactionType, reference: str | None, amount: int, *, elsewhere: bool = False) -> str:
    """The sentence about a reference that stands for something else already, perhaps of another user."""
    return (
        f"The reference {reference} belongs to another {kind.value}, of {amount:,} credits"
        f"{' of another user' if elsewhere else ''}: see `pixtrawl credits history`."
    )


HOLD = text(f"""
WITH wanted AS (
    SELECT * FROM unnest(CAST(:chunk_ids AS bigint[]), CAST(:job_ids AS bigint[]), CAST(:account_ids AS uuid[]),
        CAST(:user_ids AS uuid[]), CAST(:amounts AS bigint[]), CAST(:unit_prices AS int[]))
        WITH ORDINALITY AS wanted (chunk_id, job_id, account_id, user_id, amount, unit_price, place)),
locked AS MATERIALIZED ( -- In order of id, whichever of them can pay.
    SELECT id FROM credit_accounts WHERE id = ANY(CAST(:account_ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE),
due AS MATERIALIZED ( -- Of all that are locked, for a sum is made before anybody is asked.
    SELECT account_id, CAST(sum(amount) AS bigint) AS amount FROM wanted JOIN locked ON locked.id = account_id
    GROUP BY account_id),
account AS (
    UPDATE credit_accounts a SET current_balance = a.current_balance - due.amount,
        monthly_usage = CASE WHEN a.usage_period >= {PERIOD} THEN a.monthly_usage ELSE 0 END + due.amount,
        usage_period = greatest(a.usage_period, {PERIOD})
    FROM due WHERE a.id = due.account_id AND a.closing_at IS NULL AND a.current_balance >= due.amount
        AND CASE WHEN a.usage_period >= {PERIOD} THEN a.monthly_usage ELSE 0 END + due.amount <= a.monthly_limit
    RETURNING a.id, a.current_balance, a.usage_period)
INSERT INTO credit_transactions (account_id, user_id, type, description, amount, balance_after, status,
    job_id, chunk_id, held, unit_price, period)
SELECT a.id, w.user_id, 'usage', 'Job ' || w.job_id || ', chunk ' || w.chunk_id, -w.amount,
    a.current_balance + coalesce(sum(w.amount) OVER (
        PARTITION BY a.id ORDER BY w.place ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 0),
    'pending', w.job_id, w.chunk_id, w.amount, w.unit_price, a.usage_period
FROM wanted w JOIN account a ON a.id = w.account_id
RETURNING chunk_id
""")


def hold_all(session: Session, wanted: Collection[Hold]) -> set[int]:
    """chunks without a hold → holds open: take the worst cases off the balances. Returns the chunks that have one
    now: of each account all of those that were asked for, or none.

    The balance and the monthly limit are conditions of the one UPDATE. A second open hold of a chunk is
    refused by the database (partial unique index).
    """
    if not wanted:
        return set()
    parameters = {
        "chunk_ids": [hold.chunk_id for hold in wanted],
        "job_ids": [hold.job_id for hold in wanted],
        "account_ids": [hold.account_id for hold in wanted],
        "user_ids": [hold.user_id for hold in wanted],
        "amounts": [hold.amount for hold in wanted],
        "unit_prices": [hold.unit_price for hold in wanted],
    }
    return set(session.execute(HOLD, parameters).scalars())


def hold(session: Session, wanted: Hold) -> bool:
    """chunk without a hold → hold open, or False: see ``hold_all``."""
    return bool(hold_all(session, [wanted]))


SPENDABLE = text(f"""
SELECT CASE WHEN closing_at IS NULL THEN current_balance ELSE 0 END,
    monthly_limit - CASE WHEN usage_period >= {PERIOD} THEN monthly_usage ELSE 0 END
FROM credit_accounts WHERE id = :account_id FOR NO KEY UPDATE
""")


def spendable(session: Session, account_id: uuid.UUID) -> tuple[int, BlockedReason]:
    """(credits that a hold may take now, what is the limit), with the account locked."""
    balance, month = session.execute(SPENDABLE, {"account_id": account_id}).one()
    if balance <= month:
        return balance, BlockedReason.OUT_OF_CREDITS
    return max(month, 0), BlockedReason.MONTHLY_LIMIT


SETTLE = text("""
WITH open_hold AS (
    SELECT t.id, t.account_id, t.chunk_id, t.held, t.period, wanted.accepted * t.unit_price - coalesce((
        SELECT -sum(amount) FROM credit_transactions
        WHERE chunk_id = wanted.chunk_id AND type = 'usage' AND status = 'completed'), 0) AS charge
    FROM unnest(CAST(:chunk_ids AS bigint[]), CAST(:accepted AS bigint[])) AS wanted (chunk_id, accepted)
        JOIN credit_transactions t ON t.chunk_id = wanted.chunk_id AND t.type = 'usage' AND t.status = 'pending'),
rest AS (
    SELECT account_id, sum(credits) AS credits, jsonb_object_agg(period, credits) AS of_period
    FROM (SELECT account_id, coalesce(period, '') AS period, sum(held - charge) AS credits,
        bool_and(charge BETWEEN 0 AND held) AS covered FROM open_hold GROUP BY account_id, 2) AS months
    GROUP BY account_id HAVING bool_and(covered)),
account AS (
    UPDATE credit_accounts a SET current_balance = a.current_balance + rest.credits,
        monthly_usage = greatest(0, a.monthly_usage - coalesce(CAST(rest.of_period->>a.usage_period AS int), 0))
    FROM rest WHERE a.id = rest.account_id
    RETURNING a.id, a.current_balance),
settled AS (
    UPDATE credit_transactions t SET
        status = CASE WHEN h.charge = 0 THEN 'cancelled' ELSE 'completed' END,
        amount = CASE WHEN h.charge = 0 THEN t.amount ELSE -h.charge END,
        balance_after = h.balance, settled_at = now()
    FROM (
        SELECT h.id, h.charge, account.current_balance - coalesce(sum(h.held - h.charge) OVER (
            PARTITION BY h.account_id ORDER BY h.chunk_id
            ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 0) AS balance
        FROM open_hold h JOIN account ON account.id = h.account_id) h
    WHERE t.id = h.id AND t.status = 'pending' RETURNING t.id)
SELECT h.chunk_id, h.held, h.charge, s.id IS NOT NULL AS settled
FROM open_hold h LEFT JOIN settled s ON s.id = h.id
""")
"""Another service may have begun the month anew under open holds: that must not keep a chunk from its end."""


def settle(session: Session, chunk_id: int, accepted: int) -> int | None:
    """hold open → settled, for one chunk: the charge, or None when it has no open hold."""
    return settle_all(session, {chunk_id: accepted}).get(chunk_id)


def settle_all(session: Session, accepted: Mapping[int, int]) -> dict[int, int]:
    """holds open → settled: charge what is not yet charged for all ``accepted`` images of each chunk, and give
    the rest back. Returns the charge of each chunk that had an open hold.

    Raises CreditError when a hold does not cover its charge: a bug, and the transaction must not commit.
    """
    parameters = {"chunk_ids": list(accepted), "accepted": list(accepted.values())}
    rows = session.execute(SETTLE, parameters).all()
    for chunk_id, held, due, settled in rows:
        if not 0 <= due <= held or not settled:
            raise CreditError(f"The hold of chunk {chunk_id} is {held} credits and {due} are due.")
    return {row.chunk_id: int(row.charge) for row in rows}
