"""The statements of models/ddl.py: they refuse rows that break a rule before they change anything."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Column, Connection, Engine, ForeignKeyConstraint, Integer, text

from models import ddl
from tests.support.catalog import read_catalog

TABLES = """
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE numbers (id int PRIMARY KEY, parent int, even int, twice int);
INSERT INTO parents SELECT generate_series(1, 3);
INSERT INTO numbers SELECT n, 1 + n % 3, n - n % 2, NULL FROM generate_series(1, 12000) n;
"""


@pytest.fixture
def tables(connection: Connection) -> Connection:
    """Two tables with rows, seen from outside of the migration."""
    connection.execute(text(TABLES))
    return connection


@pytest.fixture
def migration(empty: Engine, tables: Connection) -> Iterator[None]:
    """A migration under way, in which models.ddl may be called."""
    with migrating(empty):
        yield


@contextmanager
def migrating(engine: Engine) -> Iterator[None]:
    """What env.py does around a revision."""
    with engine.connect() as own:
        context = MigrationContext.configure(own, opts={"transaction_per_migration": True})
        with Operations.context(context), context.begin_transaction(_per_migration=True):
            yield


@pytest.mark.usefixtures("migration")
def test_rows_that_break_a_check_are_listed_and_may_still_change(tables: Connection) -> None:
    """The CHECKs of a table come together or not at all: with one, its breakers could not be updated any more."""
    tables.execute(text("UPDATE numbers SET even = 3 WHERE id % 2000 = 0"))
    before = read_catalog(tables)
    rules = {"even": "even % 2 = 0", "positive": "id > 0"}
    with pytest.raises(CommandError) as refusal:
        ddl.add_checks("numbers", rules)
    sentence, listed = str(refusal.value).splitlines()
    assert sentence.startswith("Rows of the table numbers break a rule that this revision adds")
    assert listed == "  numbers: 6 rows break ck_numbers_even, first: 2000, 4000, 6000, 8000, 10000"
    assert read_catalog(tables) == before
    tables.execute(text("UPDATE numbers SET even = 4 WHERE even = 3"))
    for _ in range(2):
        ddl.add_checks("numbers", rules)
    assert read_catalog(tables)["constraint", "numbers", "ck_numbers_even"] == "CHECK (((even % 2) = 0)) true"
    ddl.drop_check("numbers", "even")
    assert ("constraint", "numbers", "ck_numbers_even") not in read_catalog(tables)


@pytest.mark.usefixtures("migration")
def test_rows_that_break_a_unique_key_are_named_and_the_next_run_builds_it(tables: Connection) -> None:
    """A build that found a duplicate says which; its leftover is dropped and built when the rows are repaired."""
    with pytest.raises(
        CommandError, match=r"(?s)of the table numbers break .*Key \(even\)=\(\d+\) is duplicated"
    ):
        ddl.add_unique("numbers", ["even"])
    tables.execute(text("UPDATE numbers SET even = id"))
    for _ in range(2):
        ddl.add_unique("numbers", ["even"])
    assert read_catalog(tables)["constraint", "numbers", "uq_numbers_even"] == "UNIQUE (even) true"


@pytest.mark.usefixtures("migration")
def test_a_foreign_key_lists_the_rows_without_a_parent(tables: Connection) -> None:
    """They are named as by `pixtrawl db orphans`, and the key is whole when they are gone."""
    tables.execute(text("UPDATE numbers SET parent = 9 WHERE id > 11998"))
    with pytest.raises(CommandError, match=r"numbers.parent -> parents.id, rows: 2, first ids: 11999, 12000"):
        ddl.add_foreign_key("numbers", "parent", "parents")
    tables.execute(text("UPDATE numbers SET parent = NULL WHERE id > 11998"))
    for _ in range(2):
        ddl.add_foreign_key("numbers", "parent", "parents")
    key = read_catalog(tables)["constraint", "numbers", "fk_numbers_parent_parents"]
    assert key == "FOREIGN KEY (parent) REFERENCES parents(id) ON DELETE CASCADE true"


@pytest.mark.usefixtures("migration")
def test_rows_are_updated_in_batches_that_are_committed(tables: Connection) -> None:
    """No transaction touches more rows than a batch has; a second run finds nothing to do."""
    for _ in range(2):
        ddl.update("numbers", "twice = 2 * id", "twice IS NULL")
    batches = tables.execute(
        text("SELECT count(*) FROM numbers WHERE twice = 2 * id GROUP BY xmin::text")
    ).scalars()
    assert sum(sizes := batches.all()) == 12000
    assert max(sizes) == ddl.BATCH_ROWS


@pytest.mark.usefixtures("migration")
def test_columns_and_tables_may_be_added_and_dropped_twice(tables: Connection) -> None:
    """An interrupted run is repeated from its first step."""
    before = read_catalog(tables)
    for _ in range(2):
        ddl.add_columns("numbers", [Column("half", Integer(), server_default="1", nullable=False)])
        key = ForeignKeyConstraint(["parent"], ["parents.id"], name="fk_children_parent_parents")
        ddl.create_table(
            "children", Column("id", Integer(), primary_key=True), Column("parent", Integer()), key
        )
    assert read_catalog(tables)["column", "numbers", "half"] == "integer NOT NULL DEFAULT 1 STORAGE p"
    assert ("constraint", "children", "fk_children_parent_parents") in read_catalog(tables)
    for _ in range(2):
        ddl.drop_columns("numbers", ["half"])
        ddl.drop_table("children")
    assert read_catalog(tables) == before
