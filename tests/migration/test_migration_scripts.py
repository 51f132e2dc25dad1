"""`alembic upgrade … --sql` prints what psql applies: the same schema, by the same steps, and down again."""

import pytest
from sqlalchemy import Connection, Engine, text

from models.database import check_schema, migrate
from tests.support.catalog import Catalog, read_catalog, read_columns, read_rows
from tests.support.invalid_index import leave_invalid_index
from tests.support.revisions import ROWS_AT, ROWS_AT_001, VERSION, Run

NOWHERE = "postgresql://nobody@/nothing?host=/nowhere"


@pytest.fixture
def expected(engine: Engine) -> Catalog:
    """The schema of a database that was migrated online."""
    with engine.connect() as migrated:
        return read_catalog(migrated)


def test_the_script_for_an_empty_database_is_one_transaction_of_plain_sql(
    expected: Catalog, empty: Engine, connection: Connection, alembic: Run, psql: Run
) -> None:
    """It leads to the migrated schema when it is sent as one query, and `downgrade` leads down to nothing."""
    # No database is asked for either script: this one does not exist.
    script = alembic("upgrade", "head", "--sql", url=NOWHERE).stdout
    assert (script.count("BEGIN;\n"), script.count("COMMIT;\n")) == (1, 1)
    with empty.connect() as one, one.connection.cursor() as cursor:
        cursor.execute(script)
    assert read_catalog(connection) == expected
    check_schema(empty)
    back = psql(alembic("downgrade", "head:base", "--sql", url=NOWHERE).stdout)
    assert (back.returncode, back.stderr) == (0, "")
    assert read_catalog(connection) == {}


def test_the_script_for_a_database_in_use_goes_on_after_any_interruption(
    expected: Catalog, empty_database_url: str, connection: Connection, alembic: Run, psql: Run
) -> None:
    """From 002 on, cut off anywhere and applied again, it leads to the migrated schema and keeps every row."""
    migrate(empty_database_url, "002")
    connection.execute(text(f"{ROWS_AT_001}; {ROWS_AT['002']}"))
    columns = read_columns(connection)
    before = read_rows(connection, columns)
    script = alembic("upgrade", "002:head", "--sql", url=NOWHERE).stdout
    steps = script.split(";\n\n")
    indexes = [number for number, step in enumerate(steps) if "INDEX CONCURRENTLY" in step]
    columns_added = [number for number, step in enumerate(steps) if "ADD COLUMN" in step]
    assert len(indexes) > 20
    for end in (indexes[10], columns_added[2], indexes[-1]):
        assert psql(";\n".join(steps[:end]) + ";").returncode == 0
    done = psql(script)
    assert (done.returncode, done.stdout) == (0, "")
    assert "ERROR" not in done.stderr
    assert read_catalog(connection) == expected
    assert read_rows(connection, columns) == before


def test_a_script_rebuilds_an_index_that_its_build_left_invalid(
    expected: Catalog, empty_database_url: str, connection: Connection, alembic: Run, psql: Run
) -> None:
    """psql drops the leftover of a build that failed, and builds the index."""
    migrate(empty_database_url, "002")
    leave_invalid_index(empty_database_url, connection, "ix_images_crawl_job_id", "images", "crawl_job_id")
    assert psql(alembic("upgrade", "002:head", "--sql", url=NOWHERE).stdout).returncode == 0
    assert read_catalog(connection) == expected


def test_a_script_stops_at_its_first_error(
    empty_database_url: str, connection: Connection, alembic: Run, psql: Run
) -> None:
    """Orphans stop it before its first change also when psql was not told to stop at errors."""
    migrate(empty_database_url, "002")
    connection.execute(text("INSERT INTO job_chunks (job_id, chunk_index) SELECT 7, generate_series(1, 9)"))
    before = read_catalog(connection)
    done = psql(alembic("upgrade", "002:head", "--sql", url=NOWHERE).stdout)
    assert done.returncode == 3
    assert "Nothing was changed" in done.stderr
    assert "job_chunks.job_id -> crawl_jobs.id, rows: 9, first ids: 1, 2, 3, 4, 5\n" in done.stderr
    assert read_catalog(connection) == before
    assert connection.execute(VERSION).scalar() == "002"
