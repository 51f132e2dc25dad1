"""A migration that was interrupted anywhere goes on when it is run again, and says so."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, Engine, event, make_url, text

from models import steps
from models.database import SchemaError, migrate
from tests.support.catalog import Catalog, read_catalog, read_columns, read_rows
from tests.support.invalid_index import leave_invalid_index
from tests.support.processes import until
from tests.support.revisions import ROWS_AT, ROWS_AT_001, VERSION

CHECKOUT = Path(__file__).parents[2]
KILLED_BEFORE = range(20, 260, 40)
BUILDING = text(
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'pixtrawl migrate' "
    "AND datname = current_database() AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'"
)


@pytest.fixture
def expected(engine: Engine) -> Catalog:
    """The schema of a database whose migration nothing interrupted."""
    with engine.connect() as migrated:
        return read_catalog(migrated)


@pytest.fixture
def url(empty_database_url: str, connection: Connection) -> str:
    """A database at 002 with rows."""
    migrate(empty_database_url, "002")
    connection.execute(text(f"{ROWS_AT_001}; {ROWS_AT['002']}"))
    return empty_database_url


@contextmanager
def somebody_else(url: str, statement: str) -> Iterator[None]:
    """Another session, in a transaction that has run ``statement`` and stays open."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    session = psycopg2.connect(plain, application_name="somebody else")
    try:
        session.cursor().execute(statement)
        yield
    finally:
        session.close()


@contextmanager
def killed_before(number: int, killer: Connection) -> Iterator[None]:
    """The server ends a migration's session before its statement ``number``."""
    count = 0

    def kill(connection: Connection, *_: Any) -> None:
        nonlocal count
        session = connection.connection.dbapi_connection
        if session.info.dsn_parameters.get("application_name") != "pixtrawl migrate":
            return
        count += 1
        if count == number:
            killer.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": session.info.backend_pid})

    event.listen(Engine, "before_cursor_execute", kill)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", kill)


def test_a_session_that_dies_anywhere_is_made_good(
    expected: Catalog, url: str, connection: Connection
) -> None:
    """Killed at every so many statements, 003 and its successors are whole after one more run, with all rows."""
    columns = read_columns(connection)
    before = read_rows(connection, columns)
    # Each run goes further than the last one: what is done costs it little.
    for number in KILLED_BEFORE:
        with killed_before(number, connection), pytest.raises(SchemaError, match="was lost"):
            migrate(url)
    migrate(url)
    assert read_catalog(connection) == expected
    assert read_rows(connection, columns) == before


def test_an_index_that_its_build_left_invalid_is_built_again(
    expected: Catalog, url: str, connection: Connection
) -> None:
    """The leftover of a build that failed is no index: it is dropped and built."""
    leave_invalid_index(url, connection, "ix_images_crawl_job_id", "images", "crawl_job_id")
    migrate(url)
    assert read_catalog(connection) == expected


def test_a_table_that_others_keep_locked_ends_it_with_a_sentence(
    expected: Catalog, url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up after a while, names who stands in the way, keeps what is done, and goes on when run again."""
    migrate(url, "003")
    monkeypatch.setattr(steps, "PATIENCE_SECONDS", 1)
    monkeypatch.setattr(steps, "LOCK_TIMEOUT_SECONDS", 1)
    with somebody_else(url, "SELECT FROM images"), pytest.raises(SchemaError) as refusal:
        migrate(url)
    message = str(refusal.value)
    assert message.startswith("Others kept the table images locked for ")
    assert "(somebody else), in a transaction for " in message
    assert message.endswith("What was done so far is kept: run this again, and it goes on from here.")
    assert "priority" in read_columns(connection)["crawl_jobs"]
    assert connection.execute(VERSION).scalar() == "003"
    migrate(url)
    assert read_catalog(connection) == expected


def test_who_waits_behind_a_migration_waits_shortly(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a table is locked by somebody else, the migration tries again and again, and writers get through."""
    migrate(url, "003")
    monkeypatch.setattr(steps, "PATIENCE_SECONDS", 3)
    monkeypatch.setattr(steps, "LOCK_TIMEOUT_SECONDS", 1)
    outcome: list[str] = []

    def upgrade() -> None:
        try:
            migrate(url)
        except SchemaError as error:
            outcome.append(str(error))

    with somebody_else(url, "SELECT FROM images"):
        migration = threading.Thread(target=upgrade)
        migration.start()
        connection.execute(text("SET lock_timeout = '2s'"))
        written = 0
        while migration.is_alive():
            connection.execute(text("UPDATE images SET width = 1"))
            written += 1
        migration.join()
    assert written > 10
    assert outcome[0].startswith("Others kept the table images locked for ")


def test_vacuum_delays_a_migration_and_nobody_else(url: str, connection: Connection) -> None:
    """Whoever holds the lock of VACUUM is waited for before anybody is locked out."""
    migrate(url, "003")
    connection.execute(text("SET lock_timeout = '200ms'"))
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'images'::regclass "
        "AND mode = 'ShareUpdateExclusiveLock'"
    )
    migration = threading.Thread(target=migrate, args=(url,))
    with somebody_else(url, "LOCK TABLE images IN SHARE UPDATE EXCLUSIVE MODE"):
        migration.start()
        until(lambda: connection.execute(waiting).scalar(), "the migration's wait for the lock")
        connection.execute(text("UPDATE images SET width = 1"))
    migration.join()
    assert connection.execute(VERSION).scalar() != "003"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_in_an_index_build_is_made_good(
    number: signal.Signals, expected: Catalog, url: str, connection: Connection
) -> None:
    """Ctrl-C cancels the build at once with a sentence; after it, or a kill, the next run builds the index."""
    with somebody_else(url, "LOCK TABLE images IN ROW EXCLUSIVE MODE"):
        process = subprocess.Popen(
            [Path(sys.executable).with_name("alembic"), "upgrade", "head"],
            cwd=CHECKOUT,
            env=os.environ | {"PIXTRAWL_DATABASE_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: connection.execute(BUILDING).scalar(), "an index build that waits")
        process.send_signal(number)
        output, _errors = process.communicate(timeout=10)
        assert process.returncode != 0
        assert output == (f"FAILED: Cancelled. {steps.KEPT}\n" if number == signal.SIGINT else "")
        # The server notices that the process is gone, and frees the migration lock.
        until(lambda: connection.execute(BUILDING).first() is None, "the end of the build", seconds=10)
    migrate(url)
    assert read_catalog(connection) == expected
