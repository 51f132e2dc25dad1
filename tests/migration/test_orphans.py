"""Rows without a parent: `pixtrawl db orphans` lists them at any revision, and revision 003 stops at them."""

import json

import pytest
from sqlalchemy import Connection, text

from models.database import SchemaError, migrate
from models.orphans import references
from scheduler.cli import main
from tests.support.catalog import read_catalog, read_columns, read_rows
from tests.support.revisions import ROWS_AT_001, USER, VERSION

ORPHANS = f"""
INSERT INTO job_chunks (job_id, chunk_index) SELECT 7, generate_series(1, 20000);
INSERT INTO images (crawl_job_id, original_url, filename) SELECT 10 + n, 'u', 'f' FROM generate_series(1, 3) n;
UPDATE api_keys SET user_id = gen_random_uuid(), id = {USER} WHERE status = 'active';
"""


@pytest.fixture(autouse=True)
def shell(monkeypatch, services, empty_database_url, tmp_path) -> None:
    """A shell in which pixtrawl uses the database without tables."""
    monkeypatch.setenv("PIXTRAWL_HOME", str(tmp_path))
    monkeypatch.setenv("PIXTRAWL_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("PIXTRAWL_REDIS_URL", services.redis_url)


def test_003_lists_orphans_and_changes_nothing(empty_database_url: str, connection: Connection) -> None:
    """Orphans stop 003 before its first change, named by table, column, count and first ids."""
    migrate(empty_database_url, "002")
    connection.execute(text(ROWS_AT_001 + ORPHANS))
    before = read_catalog(connection), read_rows(connection, read_columns(connection))
    with pytest.raises(SchemaError, match="Nothing was changed") as refusal:
        migrate(empty_database_url)
    first, *lines = str(refusal.value).split("\n  ")
    assert "`pixtrawl db orphans`" in first
    assert lines == [
        "images.crawl_job_id -> crawl_jobs.id, rows: 3, first ids: 3, 4, 5",
        "job_chunks.job_id -> crawl_jobs.id, rows: 20000, first ids: 1, 2, 3, 4, 5",
        f"api_keys.user_id -> profiles.id, rows: 1, first ids: {USER[1:-1]}",
    ]
    assert (read_catalog(connection), read_rows(connection, read_columns(connection))) == before
    assert connection.execute(VERSION).scalar() == "002"


def test_an_orphan_that_comes_late_is_listed_too(empty_database_url: str, connection: Connection) -> None:
    """A row that lost its parent while 003 built indexes stops its foreign key, and 003 goes on when it is gone."""
    migrate(empty_database_url, "002")
    connection.execute(text(ROWS_AT_001))
    # It comes with the first index of its table, between the question and the key.
    connection.execute(text(COMES_LATE))
    with pytest.raises(SchemaError) as refusal:
        migrate(empty_database_url)
    assert str(refusal.value).startswith(
        "fk_notifications_user_id_profiles: these rows name a parent that does"
    )
    assert "notifications.user_id -> profiles.id, rows: 1, first ids: 9" in str(refusal.value)
    connection.execute(text("DROP EVENT TRIGGER comes_late; DROP FUNCTION comes_late"))
    connection.execute(text("DELETE FROM notifications WHERE id = 9"))
    migrate(empty_database_url)


COMES_LATE = """
CREATE FUNCTION comes_late() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO notifications (id, user_id, title, message) VALUES (9, gen_random_uuid(), 't', 'm')
        ON CONFLICT DO NOTHING;
END $$;
CREATE EVENT TRIGGER comes_late ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION comes_late()
"""


def test_the_command_lists_orphans_at_any_revision(
    empty_database_url: str, connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without tables, at 001 and at 002 it lists what there is; after the repair and at head there is nothing."""
    assert main(["db", "orphans"]) == 0
    assert capsys.readouterr().out == "No orphans: every row has its parent\n"
    migrate(empty_database_url, "001")
    connection.execute(text(ROWS_AT_001 + "UPDATE projects SET user_id = gen_random_uuid() WHERE id > 1"))
    assert main(["db", "orphans"]) == 1
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["TABLE", "COLUMN", "PARENT", "ROWS", "FIRST", "IDS"],
        ["projects", "user_id", "profiles.id", "2", "2,", "3"],
    ]
    migrate(empty_database_url, "002")
    connection.execute(
        text("INSERT INTO job_chunks (job_id, chunk_index) SELECT 7, generate_series(1, 20000)")
    )
    assert main(["db", "orphans"]) == 1
    printed = capsys.readouterr()
    assert "20,000  1, 2, 3, 4, 5" in printed.out
    assert printed.err.startswith("20,002 rows without a parent: give each a parent that exists or delete it")
    assert main(["db", "orphans", "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)["orphans"]
    assert listed[1] == {
        "table": "job_chunks",
        "column": "job_id",
        "parent": "crawl_jobs",
        "rows": 20000,
        "first_ids": ["1", "2", "3", "4", "5"],
    }
    connection.execute(text("DELETE FROM projects WHERE id > 1; DELETE FROM job_chunks"))
    migrate(empty_database_url)
    assert main(["db", "orphans", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"orphans": []}


def test_every_foreign_key_is_asked_about(empty_database_url: str, connection: Connection) -> None:
    """The command asks about the foreign keys that the database has at head, and 003 about those it adds."""
    migrate(empty_database_url)
    keys = connection.execute(
        text("""
SELECT conrelid::regclass::text, attname, confrelid::regclass::text
FROM pg_constraint JOIN pg_attribute ON (attrelid, attnum) = (conrelid, conkey[1]) WHERE contype = 'f'""")
    )
    assert {tuple(key) for key in keys} == {(it.table, it.column, it.parent) for it in references()}


def test_group_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """`pixtrawl db` names its command."""
    assert main(["db", "--help"]) == 0
    assert "orphans  List rows whose parent does not exist." in capsys.readouterr().out
