"""Hot rows are rewritten in place: tables and indexes stay as small as they were, without any vacuum."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text

from benchmarks.submitting import create_users, submit_jobs
from benchmarks.writers import walk
from models.database import transaction
from scheduler.dispatch import queue_next
from tests.support.crawling import change, check_books, query
from tests.support.processes import until

CHUNKS = 300
PAGE_BYTES = 8192
HOT = ("crawl_jobs", "credit_accounts", "usage_metrics")
"""Each has one row here that every settle changes."""
# Cold rows beside the hot ones: their pages become as full as the tables' options let them be.
COLD = (
    """
INSERT INTO profiles (email) SELECT 'cold-' || n || '@example.invalid' FROM generate_series(1, 200) AS n
""",
    "INSERT INTO credit_accounts (user_id) SELECT id FROM profiles WHERE email LIKE 'cold%'",
    "INSERT INTO crawl_jobs (project_id, name) SELECT max(id), 'Cold' FROM projects, generate_series(1, 50)",
    """
INSERT INTO usage_metrics (user_id, metric_date)
SELECT id, CAST(now() AT TIME ZONE 'utc' AS date) FROM profiles WHERE email LIKE 'cold%'
""",
)
PLACE = "SELECT (CAST(CAST(ctid AS text) AS point))[0] FROM {} ORDER BY created_at LIMIT 1"
UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = :name"


@pytest.fixture
def busy(engine: Engine) -> Engine:
    """One job with chunks to settle, among many rows that do not change; nothing is vacuumed."""
    for table in ("job_chunks", *HOT):
        change(engine, f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    submit_jobs(engine, create_users(engine, 1), CHUNKS, 2)
    for statement in COLD:
        change(engine, statement)
    return engine


def settle(engine: Engine, number: int) -> None:
    """Walk so many chunks through all their arrows."""
    while number > 0:
        with transaction(engine) as session:
            messages = queue_next(session, min(number, 16))
        assert messages
        assert all(walk(engine, message, "worker@test") for message in messages)
        number -= len(messages)


def pages(engine: Engine) -> dict[str, int]:
    """Pages of each hot table with its indexes."""
    sizes = query(
        engine,
        "SELECT relname, pg_table_size(oid) + pg_indexes_size(oid) FROM pg_class WHERE relname = ANY(:names)",
        names=list(HOT),
    )
    return {name: size // PAGE_BYTES for name, size in sizes}


def places(engine: Engine) -> list[int]:
    """The pages that the hot job and the hot account are on."""
    return [int(query(engine, PLACE.format(table))[0][0]) for table in ("crawl_jobs", "credit_accounts")]


def updates(engine: Engine, table: str) -> tuple[int, int]:
    """Updates of a table so far, and those of them that touched no index."""
    [(all_of_them, hot)] = query(engine, UPDATES, name=table)
    return all_of_them, hot


@contextmanager
def snapshot(engine: Engine) -> Iterator[None]:
    """A transaction as that of a dump, which keeps every row version that is newer."""
    connection = engine.connect().execution_options(isolation_level="REPEATABLE READ")
    with connection, connection.begin():
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT count(*) FROM workers"))
        yield


def test_hot_rows_stay_in_place(busy: Engine) -> None:
    """After hundreds of settles each hot row is on the page that it was on, and its updates touched no index."""
    places_before = places(busy)
    settle(busy, 1)
    pages_before = pages(busy)
    settle(busy, CHUNKS - 1)
    assert (pages(busy), places(busy)) == (pages_before, places_before)
    # Whoever has counted reports it at the latest when its session ends.
    busy.dispose()
    until(lambda: updates(busy, "job_chunks")[0] == 4 * CHUNKS, "the count of updates")
    for table in HOT:
        all_of_them, hot = updates(busy, table)
        assert all_of_them > CHUNKS
        assert hot / all_of_them > 0.99, (table, hot, all_of_them)
    # Of a chunk's four updates three change what is indexed: queued, started, ended. A young lease is not renewed.
    all_of_them, hot = updates(busy, "job_chunks")
    assert hot / all_of_them > 0.98 / 4
    check_books(busy)


def test_what_a_dump_keeps_is_given_back(busy: Engine) -> None:
    """While a transaction stays open every version is kept; afterwards the space is used again."""
    with snapshot(busy):
        settle(busy, 100)
    grown = pages(busy)
    assert grown["crawl_jobs"] > 20
    settle(busy, 100)
    assert all(after <= grown[table] + 1 for table, after in pages(busy).items())
