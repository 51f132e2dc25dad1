"""Tests that are lent one database after another cannot tell: tests/support/databases.py."""

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tests.support.databases import OWN, SHAPE, TABLES, of_database
from tests.support.factories import create_chunk, create_job, create_profile, create_project

if TYPE_CHECKING:
    from tests.support.databases import Databases

SEQUENCES = "SELECT last_value FROM pg_sequences ORDER BY sequencename"


def run(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements on a connection of their own; the rows of the last one, if it has any."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def test_what_was_written_is_gone(databases: "Databases"):
    """The next one has no rows, its sequences begin anew, and its schema is that of the template."""
    # One that the server has analyzed meanwhile, or whose template it has, is not lent again.
    for _ in range(3):
        with databases.lend() as url, Session(create_engine(url, poolclass=NullPool)) as session:
            job = create_job(session, create_project(session, create_profile(session, balance=5)))
            create_chunk(session, job)
            session.commit()
        if databases.spare:
            break
    assert databases.spare
    with databases.lend() as other:
        assert other != url
        tables = [name for name, _ in run(other, TABLES)]
        assert len(tables) > 15
        assert run(other, " UNION ALL ".join(f"(SELECT 1 FROM {name} LIMIT 1)" for name in tables)) == []
        assert {last for (last,) in run(other, SEQUENCES)} == {None}
        assert run(other, SHAPE) == [tuple(row) for row in databases.shape or ()]


def test_a_template_that_was_analyzed_is_looked_at_again(databases: "Databases"):
    """The server does that when it likes. Copies differ from what it was, one is thrown away, the next one kept."""
    run(of_database(databases.url, databases.template), "ANALYZE images")
    for statement in ("CREATE TABLE another ()", "SELECT 1", "SELECT 1"):
        with databases.lend() as url:
            run(url, statement)
    assert databases.spare


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE another ()",
        "ALTER TABLE projects ALTER name DROP NOT NULL",
        "DROP INDEX ix_projects_user_id",
        "ALTER TABLE profiles DISABLE TRIGGER touch_updated_at",
        "CREATE OR REPLACE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "ANALYZE projects",
        "SELECT lo_create(0)",
        "UPDATE alembic_version SET version_num = '001'",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 64', current_database()); END $$",
    ],
)
def test_whose_schema_was_touched_is_not_lent_again(databases: "Databases", statement):
    """Neither is one whose statistics or settings were."""
    with databases.lend() as url:
        run(url, statement)
    assert not databases.spare


def test_one_that_has_grown_is_not_lent_again(databases: "Databases"):
    """Rows that were deleted would show in plans and costs."""
    with databases.lend() as url:
        run(
            url, "INSERT INTO workers (name, slots, version) SELECT n, 1, '1' FROM generate_series(1, 2000) n"
        )
    assert not databases.spare


def test_whoever_was_left_connected_is_sent_away(databases: "Databases"):
    """Its session ends with the test, its locks with it, and the name that it knows leads nowhere any more."""
    with databases.lend() as url:
        engine = create_engine(url)
        left = engine.connect()
        left.execute(text("SELECT pg_advisory_lock(1)"))
    with pytest.raises(OperationalError):
        left.execute(text("SELECT 1"))
    left.invalidate()
    engine.dispose()
    with pytest.raises(OperationalError, match="does not exist"):
        run(url, "SELECT 1")
    with databases.lend() as other:
        assert (
            run(other, f"SELECT FROM pg_stat_activity WHERE datid = {OWN} AND pid <> pg_backend_pid()") == []
        )
        assert run(other, f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND database = {OWN}") == []
