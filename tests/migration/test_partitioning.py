"""docs/partitioning.md, typed as it stands while others write: what it keeps, and what it refuses."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, text

from models import Base
from models.database import check_schema
from scheduler.cli import main
from tests.support.catalog import read_catalog, read_columns, read_rows
from tests.support.crawling import NewJob, change, check_books, new_job, query, start_next
from tests.support.pages import Reader
from tests.support.partitioning import (
    BEFORE,
    BOUND,
    CLOSE,
    PREPARE,
    ROWS_OF_ANOTHER_SERVICE,
    SIZE,
    SWITCH,
    begin_partition,
    finish,
    insist,
    settled_job,
    typist,
)
from tests.support.processes import until

WAIT_SECONDS_MAX = 2.0
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), attnotnull, attstorage, col_description(attrelid, attnum),
    pg_get_expr(adbin, adrelid)
FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
WHERE attrelid = 'images'::regclass AND attnum > 0 ORDER BY attnum
"""
OUTSIDE = """
SELECT obj_description('images'::regclass, 'pg_class'), has_table_privilege('pg_monitor', 'images', 'SELECT')
"""


@pytest.fixture
def operator(database_url: str, tmp_path: Path) -> Reader:
    """Somebody with psql on the database."""
    return typist(database_url, tmp_path)


def hung_on(connection: Connection) -> dict[tuple[str, str, str], str]:
    """Keys, rules, indexes and triggers of the table ``images``, as PostgreSQL describes them."""
    return {
        key: words.replace(" ONLY ", " ")
        for key, words in read_catalog(connection).items()
        if key[1] == "images" and key[0] in {"constraint", "index", "trigger"}
    }


def test_rows_and_rules_stay(engine: Engine, operator: Reader) -> None:
    """Each row, column, key, index, trigger, comment and grant is there afterwards; only the primary key grows."""
    job = settled_job(engine)
    change(engine, ROWS_OF_ANOTHER_SERVICE, job_id=job.id)
    change(engine, "GRANT SELECT ON images TO PUBLIC")
    with engine.connect() as connection:
        rows = read_rows(connection, columns := read_columns(connection))
        before = hung_on(connection)
        outside = [connection.execute(text(statement)).all() for statement in (COLUMNS, OUTSIDE)]
    operator.run(PREPARE)
    operator.run(SWITCH)
    with engine.connect() as connection:
        assert read_rows(connection, columns) == rows
        after = hung_on(connection)
        assert [connection.execute(text(statement)).all() for statement in (COLUMNS, OUTSIDE)] == outside
    assert after.keys() == before.keys()
    changed = {key: words for key, words in after.items() if words != before[key]}
    assert {name for _kind, _table, name in changed} == {"pk_images"}
    assert all("(id, crawl_job_id)" in words for words in changed.values())
    # An index of the parent is valid once every partition has its own.
    assert query(engine, "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid") == []
    assert query(engine, "SELECT conname FROM pg_constraint WHERE NOT convalidated") == []
    assert query(engine, "SELECT 1 FROM pg_constraint WHERE conname = 'images_range'") == []


def differences(engine: Engine) -> list[str]:
    """What Alembic would migrate."""
    options = {
        "compare_type": True,
        "include_name": lambda name, kind, _parents: kind != "table" or not name.startswith("images_from_"),
    }
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    changes = (change for each in found for change in (each if isinstance(each, list) else [each]))
    return [str(change[:4]) for change in changes]


def test_nothing_is_left_to_migrate(
    engine: Engine,
    operator: Reader,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The program takes the database as its own, and Alembic finds no difference that was not there before.

    Only that ids are always generated now, which it would call a default, is left out.
    """
    monkeypatch.setenv("PIXTRAWL_DATABASE_URL", database_url)
    monkeypatch.setenv("PIXTRAWL_REDIS_URL", "redis://127.0.0.1:1")
    before = differences(engine)
    operator.run(PREPARE)
    operator.run(SWITCH)
    assert main(["migrate"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    check_schema(engine)
    assert differences(engine) == before


@dataclass
class Work:
    """What workers met with: seconds of the longest settle, how many, and what went wrong."""

    longest: float = 0.0
    settled: int = 0
    errors: tuple[str, ...] = ()

    def beyond(self, settled: int) -> bool:
        """Whether more were settled, or none will be."""
        return self.settled > settled or bool(self.errors)


@contextmanager
def working(engine: Engine, owner: NewJob) -> Iterator[Work]:
    """A worker that makes a job and walks its chunk, again and again, while the context is open."""
    work, stop = Work(), threading.Event()

    def walk() -> None:
        while not stop.is_set():
            new_job(engine, (SIZE,), owner=owner)
            chunk = start_next(engine)
            began = time.monotonic()
            finish(engine, chunk)
            work.longest = max(work.longest, time.monotonic() - began)
            work.settled += 1

    def run() -> None:
        try:
            walk()
        except Exception as error:  # noqa: BLE001 - Whatever a worker meets with is this test's failure.
            work.errors += (repr(error),)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield work
    finally:
        stop.set()
        thread.join()


def test_workers_go_on_meanwhile(engine: Engine, operator: Reader) -> None:
    """While the page is typed, chunks are settled without an error or a long wait, in both partitions."""
    owner = new_job(engine, (), balance=1_000_000)
    with working(engine, owner) as work:
        for step in (PREPARE, SWITCH, BOUND, CLOSE):
            settled = work.settled
            insist(operator, step)
            until(partial(work.beyond, settled + 3), "settled chunks")
            if step is SWITCH:
                begin_partition(engine)
    assert work.errors == ()
    assert work.longest < WAIT_SECONDS_MAX
    assert len(query(engine, "SELECT DISTINCT tableoid FROM images")) == 2
    check_books(engine)


def test_no_row_is_read_while_the_tables_are_locked(engine: Engine, operator: Reader) -> None:
    """Both switches take PostgreSQL's word from the CHECK that was validated before; they scan nothing."""
    settled_job(engine)
    for prepare, switch, part in ((PREPARE, SWITCH, "images_from_1"), (BOUND, CLOSE, "images_from_10001")):
        operator.run(prepare)
        told = operator.sql(replace(switch, code=f"SET client_min_messages = debug1;\n{switch.code}"))
        assert f'partition constraint for table "{part}" is implied by existing constraints' in told
        assert "verifying table" not in told
        assert "rewriting table" not in told


def test_a_locked_table_is_not_waited_for(engine: Engine, operator: Reader) -> None:
    """While somebody else has the tables, the switch gives up soon and has changed nothing."""
    job = settled_job(engine)
    operator.run(PREPARE)
    with engine.connect() as connection:
        before = hung_on(connection)
        connection.rollback()
        connection.execute(text("SELECT count(*) FROM images"))
        operator.run(replace(SWITCH, marks=frozenset({"fails"}), output="…lock timeout…"))
        connection.rollback()
        assert hung_on(connection) == before
    operator.run(SWITCH)
    assert query(engine, "SELECT count(*) FROM images_from_1 WHERE crawl_job_id = :id", id=job.id) == [
        (SIZE - 1,)
    ]


def test_what_would_be_left_behind_is_listed(engine: Engine, operator: Reader) -> None:
    """A view, a policy, a foreign key and a trigger of somebody else's are named before the first step."""
    change(engine, "CREATE VIEW seen AS SELECT id FROM images")
    change(engine, "CREATE POLICY own ON images USING (true)")
    change(engine, "CREATE TABLE labels (image_id bigint REFERENCES images (id))")
    change(engine, "CREATE TRIGGER told AFTER INSERT ON images EXECUTE FUNCTION touch_updated_at()")
    listed = operator.sql(BEFORE)
    assert "(4 rows)" in listed
    for name in ("view seen", "policy own", "labels_image_id_fkey", "trigger told"):
        assert name in listed
