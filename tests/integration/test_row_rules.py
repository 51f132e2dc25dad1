"""Rules of rows hold for every writer: ``updated_at``, the ledger, GB from bytes, columns tied together."""

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import Connection, Engine, func, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models import (
    APIKey,
    Base,
    CreditTransaction,
    Image,
    NotificationPreference,
    Profile,
    UsageMetric,
)
from models.accounts import TransactionStatus
from models.credits import Hold, hold, settle
from tests.support.factories import create_chunk, create_job, create_profile, create_project

TOUCHED = sorted(table.name for table in Base.metadata.sorted_tables if "updated_at" in table.columns)
DELETE_LEDGER = text("DELETE FROM credit_transactions")
FAR = "'2001-01-01 00:00+00'"


@pytest.fixture
def user(session: Session) -> Profile:
    """A user with a row in each table that has ``updated_at``, a bonus of 100 credits, and an open hold of 10."""
    user = create_profile(session, balance=100)
    job = create_job(session, create_project(session, user))
    chunk = create_chunk(session, job)
    session.add_all(
        [
            Image(crawl_job_id=job.id, original_url="u", filename="f", position=0, sha256=b"\0" * 32),
            APIKey(user_id=user.id, name="key", key_hash="hash", key_prefix="p"),
            NotificationPreference(user_id=user.id),
        ]
    )
    session.flush()
    assert user.credit_account is not None
    assert hold(session, Hold(user.credit_account.id, user.id, job.id, chunk.id, amount=10, unit_price=1))
    session.commit()
    return user


@pytest.fixture
def psql(user: Profile, engine: Engine) -> Iterator[Connection]:
    """A connection as a person at psql has it: each statement stands alone."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def moved(connection: Connection, table: str, statement: str) -> tuple[Any, Any]:
    """``updated_at`` of the table's one row before and after a statement."""
    question = text(f"SELECT updated_at FROM {table}")
    before = connection.execute(question).scalar_one()
    connection.execute(text(statement))
    return before, connection.execute(question).scalar_one()


@pytest.mark.parametrize("table", TOUCHED)
def test_updated_at_moves_whoever_writes(table: str, psql: Connection) -> None:
    """An UPDATE that knows nothing of ``updated_at``, or writes its own time there, moves it to now."""
    for statement in (f"UPDATE {table} SET id = id", f"UPDATE {table} SET updated_at = {FAR}"):
        before, after = moved(psql, table, statement)
        clock = psql.execute(text("SELECT clock_timestamp()")).scalar_one()
        assert before < after <= clock


def test_updated_at_moves_twice_in_one_transaction(engine: Engine, user: Profile) -> None:
    """Each update of a transaction has a later time, also when the row's is ahead of the clock."""
    with engine.begin() as connection:
        first = moved(connection, "profiles", "UPDATE profiles SET full_name = 'A'")
        second = moved(connection, "profiles", "UPDATE profiles SET full_name = 'B'")
        assert (
            first[0]
            < connection.execute(text("SELECT now()")).scalar_one()
            < first[1]
            == second[0]
            < second[1]
        )
        connection.execute(text("ALTER TABLE profiles DISABLE TRIGGER touch_updated_at"))
        connection.execute(text("UPDATE profiles SET updated_at = now() + interval '1 hour'"))
        connection.execute(text("ALTER TABLE profiles ENABLE TRIGGER touch_updated_at"))
        ahead = moved(connection, "profiles", "UPDATE profiles SET full_name = 'C'")
        assert ahead[1] - ahead[0] == datetime.timedelta(microseconds=1)


def test_updated_at_is_read_back_by_a_mapped_object(session: Session, user: Profile) -> None:
    """After a flush, the attribute is the database's time and not a stale one."""
    before = user.updated_at
    user.full_name = "Ada"
    session.flush()
    assert user.updated_at > before
    session.commit()
    assert user.updated_at == session.execute(text("SELECT updated_at FROM profiles")).scalar_one()


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE credit_transactions SET amount = amount + 1 WHERE id = :id",
        "UPDATE credit_transactions SET status = 'pending' WHERE id = :id",
        "UPDATE credit_transactions SET description = 'x' WHERE id = :id",
        "UPDATE credit_transactions SET account_id = account_id WHERE id = :id",
        "DELETE FROM credit_transactions WHERE id = :id",
        "WITH gone AS (DELETE FROM credit_transactions WHERE id = :id) SELECT 1",
    ],
)
def test_an_ended_transaction_never_changes(
    session: Session, user: Profile, psql: Connection, status: str, change: str
) -> None:
    """In no end state can a transaction be changed, reopened, written over with itself, or deleted."""
    account = user.credit_account
    assert account is not None
    ended = CreditTransaction(
        account_id=account.id, user_id=user.id, type="bonus", amount=5, balance_after=95, status=status
    )
    session.add(ended)
    session.commit()
    with pytest.raises(IntegrityError, match=f"credit transaction {ended.id} is {status}") as refused:
        psql.execute(text(change), {"id": ended.id})
    assert isinstance(refused.value.orig, psycopg2.errors.RestrictViolation)
    assert psql.execute(text("SELECT count(*) FROM credit_transactions")).scalar_one() == 3


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM credit_transactions WHERE status = 'pending'",
        "UPDATE credit_transactions SET amount = -11 WHERE status = 'pending'",
        "UPDATE credit_transactions SET held = 20, status = 'completed' WHERE status = 'pending'",
        "UPDATE credit_transactions SET unit_price = 2 WHERE status = 'pending'",
        "UPDATE credit_transactions SET chunk_id = chunk_id + 1 WHERE status = 'pending'",
        "UPDATE credit_transactions SET id = gen_random_uuid() WHERE status = 'pending'",
        "UPDATE credit_transactions SET account_id = gen_random_uuid() WHERE status = 'pending'",
        "UPDATE credit_transactions SET user_id = gen_random_uuid() WHERE status = 'pending'",
        "UPDATE credit_transactions SET job_id = job_id + 1 WHERE status = 'pending'",
        "UPDATE credit_transactions SET period = '2001-01' WHERE status = 'pending'",
        "UPDATE credit_transactions SET created_at = created_at - interval '1 day' WHERE status = 'pending'",
        "UPDATE credit_transactions SET type = 'bonus' WHERE status = 'pending'",
        "TRUNCATE credit_transactions",
        "TRUNCATE profiles CASCADE",
    ],
)
def test_a_pending_transaction_only_ends(psql: Connection, change: str) -> None:
    """An open hold cannot be deleted, made larger, moved or turned into something else; nor the table emptied."""
    with pytest.raises(IntegrityError, match="the ledger"):
        psql.execute(text(change))


def test_a_pending_transaction_ends_once(session: Session, user: Profile) -> None:
    """A settlement passes; a second end of the same hold is refused."""
    transaction = session.query(CreditTransaction).filter_by(status=TransactionStatus.PENDING).one()
    assert transaction.chunk_id is not None
    assert settle(session, transaction.chunk_id, 4) == 4
    session.commit()
    assert (transaction.status, transaction.amount, transaction.held) == ("completed", -4, 10)
    transaction.status = TransactionStatus.CANCELLED
    with pytest.raises(IntegrityError, match="is completed"):
        session.flush()


@pytest.mark.parametrize("parent", ["credit_accounts", "profiles"])
def test_an_account_takes_its_transactions_with_it(psql: Connection, parent: str) -> None:
    """The deletion of an account or a profile cascades through the ledger's trigger."""
    psql.execute(text(f"DELETE FROM {parent}"))
    assert psql.execute(text("SELECT count(*) FROM credit_transactions")).scalar_one() == 0


@pytest.mark.parametrize(
    ("closing", "flag", "passes"),
    [(True, "own", True), (True, "other", False), (True, "", False), (False, "own", False)],
)
def test_batched_deletes_need_a_closing_account_and_its_flag(
    engine: Engine, user: Profile, closing: bool, flag: str, passes: bool
) -> None:
    """Only with the account's id in the transaction's setting, and only for an account that is closing."""
    account = user.credit_account
    assert account is not None
    with engine.begin() as connection:
        if closing:
            connection.execute(text("UPDATE credit_accounts SET closing_at = now()"))
        value = {"own": str(account.id), "other": str(uuid.uuid4()), "": ""}[flag]
        connection.execute(
            text("SELECT set_config('pixtrawl.closing_account', :value, true)"), {"value": value}
        )
        if passes:
            assert connection.execute(DELETE_LEDGER).rowcount == 2
        else:
            with pytest.raises(IntegrityError, match="the ledger"):
                connection.execute(DELETE_LEDGER)


def test_the_flag_ends_with_its_transaction(engine: Engine, user: Profile) -> None:
    """A connection that once deleted in batches has no key to the ledger in its next transaction."""
    account = user.credit_account
    assert account is not None
    with engine.connect() as connection:
        connection.execute(text("UPDATE credit_accounts SET closing_at = now()"))
        connection.execute(
            text("SELECT set_config('pixtrawl.closing_account', :id, true)"), {"id": str(account.id)}
        )
        connection.commit()
        with pytest.raises(IntegrityError, match="the ledger"):
            connection.execute(DELETE_LEDGER)


def test_only_reopening_a_job_that_is_being_deleted_is_refused(psql: Connection) -> None:
    """Whatever else somebody makes of its status passes."""
    psql.execute(text("UPDATE crawl_jobs SET deleting_at = now(), completed_at = NULL"))
    for status in ("failed", "cancelled"):
        psql.execute(text(f"UPDATE crawl_jobs SET status = '{status}', completed_at = now()"))
    with pytest.raises(IntegrityError, match=r"job \d+ is being deleted"):
        psql.execute(text("UPDATE crawl_jobs SET status = 'running', completed_at = NULL"))


USAGE = "INSERT INTO usage_metrics (user_id, metric_date, {}) SELECT id, '2026-01-01', {} FROM profiles"
READ_USAGE = text(
    "SELECT storage_used_bytes, storage_used_gb, bandwidth_used_bytes, bandwidth_used_gb FROM usage_metrics"
)


def test_gb_follow_bytes(psql: Connection) -> None:
    """GB are the bytes rounded, at insert and update, also when somebody writes something else there."""
    psql.execute(text(USAGE.format("storage_used_bytes, storage_used_gb", "75000, 7")))
    assert tuple(map(float, psql.execute(READ_USAGE).one())) == (75_000, 0, 0, 0)
    psql.execute(
        text("UPDATE usage_metrics SET storage_used_bytes = 12345678901, bandwidth_used_bytes = 5e6")
    )
    assert tuple(map(float, psql.execute(READ_USAGE).one())) == (12_345_678_901, 12.35, 5_000_000, 0.01)


def test_a_writer_of_gb_is_heard(psql: Connection) -> None:
    """A service that knows only the GB columns adds to the bytes what it adds there, and takes back the same."""
    psql.execute(text(USAGE.format("storage_used_gb, bandwidth_used_gb", "1.25, 0.5")))
    assert tuple(map(float, psql.execute(READ_USAGE).one())) == (1_250_000_000, 1.25, 500_000_000, 0.5)
    psql.execute(text("UPDATE usage_metrics SET storage_used_bytes = storage_used_bytes + 7"))
    psql.execute(text("UPDATE usage_metrics SET storage_used_gb = storage_used_gb + 0.75"))
    assert tuple(map(float, psql.execute(READ_USAGE).one()))[:2] == (2_000_000_007, 2)
    for kind, figures in (("storage", slice(2)), ("bandwidth", slice(2, 4))):
        # Five million bytes are 0.01 GB, rounded: more is taken back than there is.
        psql.execute(text(f"UPDATE usage_metrics SET {kind}_used_bytes = 5000000"))
        psql.execute(text(f"UPDATE usage_metrics SET {kind}_used_gb = 0"))
        assert tuple(map(float, psql.execute(READ_USAGE).one()))[figures] == (0, 0)


def test_gb_of_a_mapped_object_are_read_back(session: Session, user: Profile) -> None:
    """The attribute after a flush is what the trigger made of it."""
    metric = UsageMetric(
        user_id=user.id, metric_date=func.date("2026-01-02"), storage_used_bytes=2_500_000_000
    )
    session.add(metric)
    session.flush()
    assert float(metric.storage_used_gb) == 2.5
    metric.storage_used_bytes = 3_000_000_000
    session.flush()
    assert float(metric.storage_used_gb) == 3


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("UPDATE crawl_jobs SET status = 'completed'", "ck_crawl_jobs_ended"),
        ("UPDATE crawl_jobs SET status = 'failed'", "ck_crawl_jobs_ended"),
        ("UPDATE crawl_jobs SET status = 'cancelled'", "ck_crawl_jobs_ended"),
        ("UPDATE crawl_jobs SET completed_at = now()", "ck_crawl_jobs_ended"),
        ("UPDATE job_chunks SET status = 'processing'", "ck_job_chunks_leased"),
        ("UPDATE job_chunks SET lease_until = now(), worker = 'w'", "ck_job_chunks_leased"),
        ("UPDATE job_chunks SET status = 'processing', lease_until = now()", "ck_job_chunks_lease_holder"),
        ("UPDATE job_chunks SET worker = 'w'", "ck_job_chunks_lease_holder"),
        ("UPDATE job_chunks SET status = 'completed'", "ck_job_chunks_ended_whole"),
        ("UPDATE job_chunks SET failed = size + 1", "ck_job_chunks_outcomes"),
        (
            "UPDATE job_chunks SET queued_at = now(), status = 'completed', failed = size",
            "ck_job_chunks_queued",
        ),
        (
            "INSERT INTO notifications (user_id, title, message, is_read) SELECT id, 't', 'm', true FROM profiles",
            "ck_notifications_read",
        ),
        (
            "INSERT INTO notifications (user_id, title, message, read_at) SELECT id, 't', 'm', now() FROM profiles",
            "ck_notifications_read",
        ),
        (
            "UPDATE credit_transactions SET settled_at = now() WHERE status = 'pending'",
            "ck_credit_transactions_settled",
        ),
        (
            "UPDATE credit_transactions SET status = 'completed', amount = -11 WHERE status = 'pending'",
            "ck_credit_transactions_held",
        ),
    ],
)
def test_columns_are_tied_together(psql: Connection, statement: str, rule: str) -> None:
    """A status and what it implies change in one statement, or not at all; the message names the rule."""
    with pytest.raises(IntegrityError, match=rule):
        psql.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE crawl_jobs SET status = 'completed', completed_at = now()",
        "UPDATE job_chunks SET status = 'processing', lease_until = 'infinity', worker = 'another service'",
        "UPDATE job_chunks SET status = 'failed', failed = size",
    ],
)
def test_what_a_status_implies_may_be_written_with_it(psql: Connection, statement: str) -> None:
    """The whole change in one statement passes."""
    assert psql.execute(text(statement)).rowcount == 1
