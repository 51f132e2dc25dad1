"""The turn of the month while holds are open, accounts that run out, and equal bytes stored twice at once."""

import random

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from chaos.crowd import submit
from chaos.processes import until
from chaos.registry import BrokenPromiseError, fault
from chaos.site import ACCEPTED, Line
from chaos.system import System
from models.accounts import TransactionType
from models.credits import grant
from models.database import transaction, transient

FUNDS, DEBITS = 30, 50

# Ledger rows that have ended never change: only a superuser who switches the triggers off can move time back.
MONTH_AGO = """
to_char(to_date({period}, 'YYYY-MM') - interval '1 month', 'YYYY-MM')
"""
LOCK = "LOCK TABLE credit_accounts, credit_transactions IN ACCESS EXCLUSIVE MODE"
MOVE_ROWS = (
    f"UPDATE credit_transactions SET period = {MONTH_AGO.format(period='period')} WHERE period IS NOT NULL"
)
MOVE_ACCOUNTS = f"UPDATE credit_accounts SET usage_period = {MONTH_AGO.format(period='usage_period')}"
OPEN_HOLDS = "SELECT FROM credit_transactions WHERE type = 'usage' AND status = 'pending' LIMIT 1"


@fault(full=20)
def month_turns(system: System, _chance: random.Random) -> None:
    """The month turns while holds are open: all that was held and spent so far lies in the month before."""
    until(lambda: system.query(OPEN_HOLDS), "an open hold")
    until(lambda: _turn(system), "the turn of the month")


def _turn(system: System) -> bool:
    """Move all to the month before; False when others were in the way.

    The tables are locked: a settlement that began before would else see the accounts of one month and the holds
    of another, which no real turn of a month does.
    """
    try:
        with transaction(system.engine) as session:
            for statement in (LOCK, "SET LOCAL session_replication_role = replica", MOVE_ROWS, MOVE_ACCOUNTS):
                session.execute(text(statement))
    except DBAPIError as error:
        if not transient(error):
            raise
        return False
    return True


@fault(full=10, deadline_seconds=120)
def equal_bytes_at_once(system: System, chance: random.Random) -> None:
    """A job of one picture under many URLs: several chunks store the same bytes at once, and one is paid for."""
    number = chance.randrange(1 << 24, 1 << 25)
    lines = [Line(f"{system.site.url}/copy/{number}/{place}", ACCEPTED, "all") for place in range(100)]
    submit(system, system.engine, chance.choice(system.users), lines)


@fault(full=10, deadline_seconds=120)
def funds_for_some(system: System, chance: random.Random) -> None:
    """A user with funds for 30 images submits three jobs of 50: 30 are spent, and the rest after a top-up."""
    email = f"poor-{chance.randrange(1 << 60)}@example.invalid"
    user_id = system.create_user(email, FUNDS)
    for _ in range(3):
        first = chance.randrange(1 << 24, 1 << 25)
        lines = [Line(f"{system.site.url}/good/{first + place}", ACCEPTED) for place in range(DEBITS)]
        submit(system, system.engine, email, lines)
    until(lambda: _stuck(system, email), "the end of the funds")
    spent = system.query(SPENT, email=email)[0]
    if (spent.balance, spent.accepted) != (0, FUNDS):
        raise BrokenPromiseError(
            f"{FUNDS} credits paid for {spent.accepted} images, {spent.balance} are left"
        )
    with transaction(system.engine) as session:
        grant(session, user_id, 3 * DEBITS - FUNDS, kind=TransactionType.PURCHASE, description="Top-up")


STUCK = """
SELECT count(*) FROM crawl_jobs j JOIN projects p ON p.id = j.project_id JOIN profiles u ON u.id = p.user_id
WHERE u.email = :email AND j.blocked_reason IS NOT NULL AND j.active_chunks = 0
    AND NOT EXISTS (SELECT FROM credit_transactions t WHERE t.job_id = j.id AND t.status = 'pending')
"""
SPENT = """
SELECT a.current_balance AS balance, sum(j.valid_images) AS accepted
FROM profiles u JOIN credit_accounts a ON a.user_id = u.id JOIN projects p ON p.user_id = u.id
    JOIN crawl_jobs j ON j.project_id = p.id
WHERE u.email = :email GROUP BY a.id
"""


def _stuck(system: System, email: str) -> bool:
    return bool(system.query(STUCK, email=email)[0][0] == 3)
