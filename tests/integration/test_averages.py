"""The nightly average: what was charged a day, from the ledger, once a UTC day for each account."""

import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal

import pytest
from sqlalchemy import Engine, text

from models.averages import FIRST, average_page
from models.database import transaction
from models.settings import read_settings
from scheduler import averages as walking
from scheduler.averages import Averager
from scheduler.leader import Leader, leadership
from tests.support.crawling import change, new_job, query
from tests.support.processes import until

MIDNIGHT = "(date_trunc('day', now() AT TIME ZONE 'utc') AT TIME ZONE 'utc')"
TODAY = "CAST(now() AT TIME ZONE 'utc' AS date)"


@pytest.fixture
def leader(database_url: str) -> Iterator[Leader]:
    """The leader, in this process."""
    settings = read_settings(database_url=database_url.replace("+psycopg2", ""))
    with leadership(settings, threading.Event()) as leader:
        assert leader is not None
        yield leader


def charge(engine: Engine, account_id: uuid.UUID, amount: int, when: str, status: str = "completed") -> None:
    """A charge that was settled at a time, as SQL."""
    change(
        engine,
        f"""INSERT INTO credit_transactions (account_id, user_id, type, status, amount, balance_after, settled_at)
        SELECT id, user_id, 'usage', :status, -:amount, 0, {when}
        FROM credit_accounts WHERE id = :id""",
        id=account_id,
        amount=amount,
        status=status,
    )


def account(engine: Engine, made: str = "now() - interval '1 year'") -> uuid.UUID:
    """An account that was made at a time, as SQL."""
    job = new_job(engine)
    change(engine, f"UPDATE credit_accounts SET created_at = {made} WHERE id = :id", id=job.account_id)
    return job.account_id


def average_of(engine: Engine, account_id: uuid.UUID) -> tuple[Decimal, bool]:
    """(average, whether it is today's)."""
    statement = f"""SELECT average_daily_usage, averaged_on = {TODAY} IS TRUE
        FROM credit_accounts WHERE id = :id"""
    [row] = query(engine, statement, id=account_id)
    return row[0], row[1]


def test_thirty_full_days(engine, leader):
    """Charges from the midnight 30 days ago until the last one count; holds, refunds and others do not."""
    account_id = account(engine)
    for amount, when in (
        (1000, f"{MIDNIGHT} - interval '720 hours 1 microsecond'"),
        (300, f"{MIDNIGHT} - interval '720 hours'"),
        (301, f"{MIDNIGHT} - interval '1 microsecond'"),
        (1000, MIDNIGHT),
        (1000, "now()"),
    ):
        charge(engine, account_id, amount, when)
    charge(engine, account_id, 1000, "NULL", status="pending")
    charge(engine, account(engine), 1000, f"{MIDNIGHT} - interval '1 hour'")
    Averager(leader).average()
    assert average_of(engine, account_id) == (Decimal("20.03"), True)


@pytest.mark.parametrize(
    ("made", "average"),
    [
        ("now()", "0.00"),
        (f"{MIDNIGHT} - interval '1 microsecond'", "600.00"),
        (f"{MIDNIGHT} - interval '48 hours'", "300.00"),
        (f"{MIDNIGHT} - interval '49 hours'", "200.00"),
        (f"{MIDNIGHT} - interval '29 days 23 hours'", "20.00"),
        (f"{MIDNIGHT} - interval '40 days'", "20.00"),
    ],
)
def test_a_young_account_is_averaged_over_its_own_days(engine, leader, made, average):
    """From the UTC day on which it was made until yesterday; one of today has none."""
    account_id = account(engine, made)
    if average != "0.00":
        charge(engine, account_id, 600, f"{MIDNIGHT} - interval '1 microsecond'")
    charge(engine, account_id, 50, "now()")
    Averager(leader).average()
    assert average_of(engine, account_id) == (Decimal(average), True)


def test_once_a_day_and_after_days_without_a_scheduler(engine, leader):
    """Today's mark is left alone; a mark of any earlier day is renewed, and what was missed makes no difference."""
    account_id = account(engine)
    averager = Averager(leader)
    averager.average()
    charge(engine, account_id, 3000, f"{MIDNIGHT} - interval '4 days'")
    averager.average()
    Averager(leader).average()
    assert average_of(engine, account_id) == (Decimal("0.00"), True)
    change(engine, f"UPDATE credit_accounts SET averaged_on = {TODAY} - 9")
    Averager(leader).average()
    assert average_of(engine, account_id) == (Decimal("100.00"), True)


def test_the_walk_goes_on_where_it_stopped(engine, leader, monkeypatch):
    """Pages are transactions of their own; another leader averages only what has no mark."""
    monkeypatch.setattr(walking, "PAGE", 2)
    monkeypatch.setattr(walking, "ROUND_SECONDS", 0)
    for _ in range(7):
        account(engine)
    with leader.transaction() as session:
        first = average_page(session, FIRST, 3)
    assert (first.averaged, first.skipped) == (3, 0)
    with leader.transaction() as session:
        assert average_page(session, FIRST, 3).averaged == 0
    monkeypatch.setattr(walking, "ROUND_SECONDS", 5)
    averager = Averager(leader)
    averager.average()
    assert averager.done is not None
    assert query(engine, f"SELECT count(*) FROM credit_accounts WHERE averaged_on = {TODAY}") == [(7,)]


def test_an_account_in_use_is_averaged_later(engine, leader):
    """A locked account stops nobody: it is passed over, and the walk is not done before it has its mark."""
    busy, free = account(engine), account(engine)
    averager = Averager(leader)
    with transaction(engine) as session:
        session.execute(text("SELECT FROM credit_accounts WHERE id = :id FOR UPDATE"), {"id": busy})
        averager.average()
        assert average_of(engine, free)[1]
        assert averager.done is None
    until(lambda: averager.average() or averager.done, "the rest")
    assert average_of(engine, busy)[1]


def test_a_huge_average_fits(engine, leader):
    """The column's largest value stands for anything above it."""
    account_id = account(engine, f"{MIDNIGHT} - interval '1 hour'")
    charge(engine, account_id, 2_000_000_000, f"{MIDNIGHT} - interval '1 minute'")
    Averager(leader).average()
    assert average_of(engine, account_id)[0] == Decimal("99999999.99")
