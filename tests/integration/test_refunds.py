"""Refunds and purchases: never more than was charged, never twice for one reference."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from models.accounts import TransactionType
from models.audit import differences
from models.credits import CREDITS_MAX, Added, CreditError, add_credits, grant
from models.database import transaction
from models.job_lifecycle import block_job, unblock_jobs
from models.jobs import BlockedReason
from models.lifecycle import settle_chunk
from models.refunds import Refund, refund_job
from tests.support.crawling import (
    NewJob,
    accepted,
    balance_of,
    change,
    check_books,
    new_job,
    query,
    read_job,
    start_next,
    wait_for_blocked,
)


@pytest.fixture
def job(engine: Engine) -> NewJob:
    """A job of ten images at 3 credits, all accepted and paid for with all that there was."""
    job = new_job(engine, [10], balance=30, unit_price=3)
    chunk = start_next(engine)
    with transaction(engine) as session:
        settle_chunk(session, chunk.fence, [accepted(each.position) for each in chunk.candidates])
    return job


def give_back(engine: Engine, job_id: int, amount: int | None = None, reference: str | None = None) -> Refund:
    """Commit one refund."""
    with transaction(engine) as session:
        return refund_job(session, job_id, amount, "The images were blurred", reference=reference)


def buy(engine: Engine, job: NewJob, amount: int, reference: str) -> Added:
    """Commit one purchase."""
    with transaction(engine) as session:
        return add_credits(session, job.user_id, amount, TransactionType.PURCHASE, "Card", reference)


def test_a_refund_gives_back_what_is_left(engine, job):
    """A part first, then all that is not refunded yet, then nothing more; the month's usage stays."""
    first = give_back(engine, job.id, 7)
    assert (first.amount, first.added.balance, first.charged, first.refunded) == (7, 7, 30, 7)
    assert give_back(engine, job.id).amount == 23
    with pytest.raises(CreditError, match="nothing left to refund: 30 credits charged, 30 refunded"):
        give_back(engine, job.id)
    assert balance_of(engine, job) == 30
    assert query(engine, "SELECT monthly_usage FROM credit_accounts") == [(30,)]
    assert query(engine, "SELECT title FROM notifications") == [("Credits refunded",)] * 2
    check_books(engine)


def test_more_than_was_charged_is_refused(engine, job):
    """The sentence says how much could be refunded, and nothing changes."""
    give_back(engine, job.id, 7)
    with pytest.raises(CreditError, match="charged 30 credits and 7 are refunded: 23 more can be at most"):
        give_back(engine, job.id, 24)
    with pytest.raises(CreditError, match="Nothing was ever charged for a job 999"):
        give_back(engine, 999)
    assert balance_of(engine, job) == 7


def test_what_is_only_held_cannot_be_refunded(engine):
    """An open hold is no charge."""
    job = new_job(engine, [10])
    start_next(engine)
    with pytest.raises(CreditError, match="nothing left to refund: 0 credits charged"):
        give_back(engine, job.id)


def test_ten_refunds_at_once_give_back_what_was_charged(engine, job):
    """Ten refunds of 4 credits of a job that was charged 30: seven succeed."""

    def attempt(_: int) -> bool:
        try:
            give_back(engine, job.id, 4)
        except CreditError:
            return False
        return True

    with ThreadPoolExecutor(10) as threads:
        assert list(threads.map(attempt, range(10))).count(True) == 7
    assert balance_of(engine, job) == 28
    check_books(engine)


def test_a_refund_with_a_reference_is_made_once(engine, job):
    """The same request again says what was done, and does nothing; another job or amount is refused."""
    done = give_back(engine, job.id, 4, "ticket 7")
    for amount in (4, None):
        again = give_back(engine, job.id, amount, "ticket 7")
        assert (again.added.id, again.added.repeated, again.amount) == (done.added.id, True, 4)
        assert again.refunded == 4
    with pytest.raises(CreditError, match="ticket 7 belongs to another refund, of 4 credits"):
        give_back(engine, job.id, 5, "ticket 7")
    assert balance_of(engine, job) == 4
    other = new_job(engine, [4], owner=job)
    chunk = start_next(engine)
    with transaction(engine) as session:
        settle_chunk(session, chunk.fence, [accepted(each.position) for each in chunk.candidates])
    with pytest.raises(CreditError, match="ticket 7 belongs to another refund, of 4 credits"):
        give_back(engine, other.id, 4, "ticket 7")
    assert balance_of(engine, job) == 0


def test_a_deleted_job_can_be_refunded(engine, job):
    """The ledger outlives jobs."""
    change(engine, "DELETE FROM crawl_jobs")
    assert give_back(engine, job.id).amount == 30
    with transaction(engine) as session:
        assert list(differences(session)) == []


def test_an_account_that_is_full_or_closing_takes_no_refund(engine, job):
    """Nothing is given back that the account could not hold, or that would vanish with it."""
    with transaction(engine) as session:
        grant(session, job.user_id, CREDITS_MAX - 10, description="Plenty")
    with pytest.raises(CreditError, match="takes no refund"):
        give_back(engine, job.id, 11)
    change(engine, "UPDATE credit_accounts SET closing_at = now()")
    with pytest.raises(CreditError, match="takes no refund"):
        give_back(engine, job.id, 1)


def test_a_refund_unblocks_a_job(engine, job):
    """Credits that come back are credits."""
    other = new_job(engine, [5], owner=job, unit_price=3)
    with transaction(engine) as session:
        assert block_job(session, other.id, BlockedReason.OUT_OF_CREDITS)
        assert unblock_jobs(session) == []
    give_back(engine, job.id, 15)
    with transaction(engine) as session:
        assert unblock_jobs(session) == [other.id]
    assert read_job(engine, other.id)["blocked_reason"] is None


def test_a_purchase_counts_once_for_each_reference(engine, job):
    """Ten at once with one reference add the credits once, and all of them say the same."""
    with ThreadPoolExecutor(10) as threads:
        bought = list(threads.map(lambda _: buy(engine, job, 100, "charge-1"), range(10)))
    assert {each.id for each in bought} == {bought[0].id}
    assert [each.repeated for each in bought].count(False) == 1
    assert balance_of(engine, job) == 100
    assert not buy(engine, job, 50, "charge-2").repeated
    check_books(engine)


def test_lines_of_the_ledger_follow_each_other(engine, job):
    """Twenty purchases at once are one after the other: each line's balance is the one before it and its amount."""
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(lambda number: buy(engine, job, 1, f"charge-{number}"), range(20)))
    balances = query(
        engine, "SELECT balance_after FROM credit_transactions WHERE type = 'purchase' ORDER BY 1"
    )
    assert balances == [(number,) for number in range(1, 21)]


def test_a_reference_belongs_to_one_account_and_amount(engine, job):
    """The same reference for another amount or account is refused, also when both come at once."""
    other = new_job(engine, [1])
    buy(engine, job, 100, "charge-1")
    with pytest.raises(CreditError, match="charge-1 belongs to another purchase, of 100 credits"):
        buy(engine, job, 101, "charge-1")
    with pytest.raises(
        CreditError, match="charge-1 belongs to another purchase, of 100 credits of another user"
    ):
        buy(engine, other, 100, "charge-1")

    def attempt(owner: NewJob) -> bool:
        try:
            return not buy(engine, owner, 9, "charge-2").repeated
        except CreditError:
            return False

    with ThreadPoolExecutor(10) as threads:
        assert list(threads.map(attempt, [job, other] * 5)).count(True) == 1
    check_books(engine)


def test_a_reference_that_another_account_takes_meanwhile(engine, job):
    """Whoever waited for it is told whose it is."""
    other = new_job(engine, [1])
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            add_credits(session, job.user_id, 9, TransactionType.PURCHASE, "Card", "charge-1")
            second = thread.submit(buy, engine, other, 9, "charge-1")
            wait_for_blocked(engine)
        with pytest.raises(CreditError, match="of 9 credits of another user"):
            second.result(10)
    check_books(engine)


def test_a_reference_belongs_to_its_kind(engine, job):
    """A refund may have the reference of the purchase that it is for; each is made once all the same."""
    buy(engine, job, 100, "charge-1")
    assert not give_back(engine, job.id, 4, "charge-1").added.repeated
    assert buy(engine, job, 100, "charge-1").repeated
    assert give_back(engine, job.id, 4, "charge-1").added.repeated
    assert balance_of(engine, job) == 104


def test_nobody_can_buy_without_an_account(engine):
    """The sentence says so."""
    with transaction(engine) as session, pytest.raises(CreditError, match="has no credit account"):
        add_credits(session, uuid.uuid4(), 5, TransactionType.PURCHASE, "Card", "x")
