"""Migrations of large tables while others write them: nobody waits for long, and nobody fails.

TEST_MIGRATION_ROWS=1000000 fills each of the three large tables with a million rows, for some minutes.
"""

import logging
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, make_url

from alembic import command
from models.database import alembic_config, check_schema, make_engine, migrate
from tests.support.catalog import read_catalog
from tests.support.writers import FILLED, writers

ROWS = int(os.environ.get("TEST_MIGRATION_ROWS", "200000"))
SECONDS_MAX = 1.0
ROWS_MANY = 1_000_000

log = logging.getLogger(__name__)

# What scans or writes a whole table while it locks others out, unless the table is new.
BLOCKING = (
    r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)",
    r"DROP INDEX (?!CONCURRENTLY)",
    r"ADD CONSTRAINT \w+ (CHECK|FOREIGN KEY)(?!.*NOT VALID;)",
    r"ADD CONSTRAINT \w+ UNIQUE (?!USING INDEX)",
    r"ALTER COLUMN \w+ (TYPE|SET NOT NULL|SET DATA)",
    r"^(UPDATE|DELETE FROM) (?!alembic_version)",
)


def run(url: str, statements: str) -> None:
    """Run statements in one transaction."""
    connection = psycopg2.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statements)
    finally:
        connection.close()


@pytest.fixture
def filled(empty_database_url: str) -> str:
    """A database at 002 with ROWS rows in each large table."""
    migrate(empty_database_url, "002")
    run(empty_database_url, FILLED.format(rows=ROWS))
    return empty_database_url


@pytest.fixture
def copied(administration: Engine, filled: str) -> Iterator[str]:
    """A copy of that database."""
    name = make_url(filled).database
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    yield make_url(filled).set(database=f"{name}_copy").render_as_string(hide_password=False)
    with administration.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}_copy WITH (FORCE)")


def blocking_003() -> str:
    """Revision 003 as it is usually written: keys and indexes in one transaction."""
    module = ScriptDirectory.from_config(alembic_config()).get_revision("003").module
    keys = [
        f"ALTER TABLE {table} ADD FOREIGN KEY ({column}) REFERENCES {parent} ON DELETE CASCADE;"
        for table, column, parent in module.FOREIGN_KEYS
    ]
    indexes = [f"CREATE INDEX ON {table} ({', '.join(columns)});" for table, *columns in module.INDEXES]
    return "\n".join(keys + indexes)


@pytest.fixture
def sent() -> Iterator[list[str]]:
    """The statements that migrations send to the server."""
    statements: list[str] = []

    def keep(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", keep)
    yield statements
    event.remove(Engine, "before_cursor_execute", keep)


def test_no_statement_locks_a_table_for_a_scan(empty_database_url: str, sent: list[str]) -> None:
    """From 003 on, up and down again, each statement is of a form that holds nobody up however large a table is."""
    migrate(empty_database_url, "002")
    sent.clear()
    migrate(empty_database_url)
    command.downgrade(alembic_config(empty_database_url), "002")
    assert len(sent) > 200
    for form in BLOCKING:
        assert [statement for statement in sent if re.search(form, statement)] == []


def test_writers_go_on_while_large_tables_are_migrated(filled: str, copied: str, engine: Engine) -> None:
    """003 and its successors hold no write up for a second; the usual way holds them up for its whole time."""
    with writers(copied) as usual:
        run(copied, blocking_003())
    began = time.monotonic()
    with writers(filled) as ours:
        migrate(filled)
    log.warning(
        "%d rows a table. Usual way: %s. Ours, %.1f s in all: %s", ROWS, usual, time.monotonic() - began, ours
    )
    assert (usual.errors, ours.errors) == ([], [])
    longest = max(ours.longest.values())
    assert longest < SECONDS_MAX
    # With few rows the usual way holds up a write for hardly longer than a busy machine does by itself.
    assert longest < max(usual.longest.values()) / (3 if ROWS >= ROWS_MANY else 1)
    assert min(ours.counted.values()) > 100
    migrated = make_engine(filled)
    with migrated.connect() as connection, engine.connect() as template:
        assert read_catalog(connection) == read_catalog(template)
    check_schema(migrated)
    migrated.dispose()
