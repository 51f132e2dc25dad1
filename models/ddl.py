"""Statements that change a large table while others read and write it, for migration files.

Each is a step (see models/steps.py) that may be run again, so that a revision which was interrupted anywhere
goes on when it is run again. Nothing here rewrites a table or holds back its readers and writers while it
scans. Offline (``--sql``) the same statements are printed; a script that begins with an empty database is
plain SQL in one transaction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn, SchemaItem

from alembic import op
from models.orphans import IDS_SHOWN, Reference, lines
from models.steps import BROKEN, LOCK_TIMEOUT_SECONDS, change, empty_database, refuse, scan

__all__ = [
    "add_check",
    "add_checks",
    "add_columns",
    "add_foreign_key",
    "add_unique",
    "create_index",
    "create_table",
    "drop_check",
    "drop_columns",
    "drop_constraint",
    "drop_index",
    "drop_table",
    "execute",
    "refuse",
    "update",
]

BATCH_ROWS = 5000


def create_table(table: str, *items: SchemaItem) -> None:
    """Make a table; a foreign key in it locks its parent for a moment."""
    keys = [item for item in items if isinstance(item, sa.ForeignKeyConstraint)]
    parents = {element.target_fullname.partition(".")[0] for key in keys for element in key.elements}
    change(sorted(parents), lambda: op.create_table(table, *items, if_not_exists=True))


def drop_table(table: str) -> None:
    """Drop a table with its rows."""
    change([], lambda: op.execute(f"DROP TABLE IF EXISTS {table}"))


def add_columns(table: str, columns: Sequence[sa.Column[Any]]) -> None:
    """Add columns; a default must be constant for the statement, so that no row is written."""
    sa.Table(table, sa.MetaData(), *columns)
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    added = (
        f"ADD COLUMN IF NOT EXISTS {CreateColumn(column).compile(dialect=dialect)}" for column in columns
    )
    execute(table, f"ALTER TABLE {table} {', '.join(added)}")


def drop_columns(table: str, columns: Sequence[str]) -> None:
    """Drop columns, with the indexes and constraints on them."""
    execute(
        table, f"ALTER TABLE {table} {', '.join(f'DROP COLUMN IF EXISTS {column}' for column in columns)}"
    )


def execute(table: str, statement: str) -> None:
    """One statement of our own that is quick and may be run again (``CREATE OR REPLACE``, ``IF EXISTS``, …)."""
    change([table], lambda: op.execute(statement))


def create_index(
    name: str, table: str, columns: Sequence[str], *, unique: bool = False, where: str | None = None
) -> None:
    """Build an index beside the writers of the table. ``columns`` are columns or SQL expressions.

    What a build that failed left behind is dropped first; a valid index of this name is taken as it is.
    """
    kind = "UNIQUE INDEX" if unique else "INDEX"
    mode = "" if empty_database() else "CONCURRENTLY IF NOT EXISTS "
    condition = f" WHERE {where}" if where else ""
    statement = f"CREATE {kind} {mode}{name} ON {table} ({', '.join(columns)}){condition}"

    def build() -> None:
        _drop_leftover(name)
        op.execute(statement)

    scan(table, build)


def drop_index(name: str, table: str) -> None:
    """Drop an index beside the readers and writers of its table."""
    mode = "" if empty_database() else "CONCURRENTLY "
    scan(table, lambda: op.execute(f"DROP INDEX {mode}IF EXISTS {name}"))


def add_check(table: str, name: str, rule: str, *, key: str = "id") -> None:
    """CHECK ``ck_{table}_{name}``; see ``add_checks``."""
    add_checks(table, {name: rule}, key=key)


def add_checks(table: str, rules: Mapping[str, str], *, key: str = "id") -> None:
    """CHECKs ``ck_{table}_{name}``, validated while the table is written.

    Rows that break a rule stop it before any of the rules is there (with it, nobody could update them any
    more), named by ``key``, the table's primary key.
    """
    named = {f"ck_{table}_{name}": rule for name, rule in rules.items()}
    _refuse_rows(table, named, key)
    added = (_unless_constraint(table, name, f"CHECK ({rule}){_not_valid()}") for name, rule in named.items())
    execute(table, f"DO $$ BEGIN\n{chr(10).join(added)}\nEND $$")
    _validate(table, named)


def add_foreign_key(table: str, column: str, parent: str, *, key: str = "id") -> None:
    """Foreign key to ``parent.id`` with ON DELETE CASCADE, validated while both tables are written.

    Build the index on ``column`` first: a cascade would read the whole table without it. A row without a
    parent is told like those that ``pixtrawl db orphans`` lists.
    """
    name = f"fk_{table}_{column}_{parent}"
    rule = f"FOREIGN KEY ({column}) REFERENCES {parent} (id) ON DELETE CASCADE{_not_valid()}"
    added = f"DO $$ BEGIN\n{_unless_constraint(table, name, rule)}\nEND $$"
    change([table, parent], lambda: op.execute(added))
    refuse(
        f"{name}: these rows name a parent that does not exist. What was done so far is kept: repair or delete "
        "them, then run it again.",
        lines([Reference(table, column, parent, key)]),
        table,
    )
    _validate(table, [name])


def add_unique(table: str, columns: Sequence[str], name: str | None = None) -> None:
    """UNIQUE constraint on an index that was built beside the writers of the table."""
    name = name or f"uq_{table}_{'_'.join(columns)}"
    if empty_database():
        op.create_unique_constraint(name, table, list(columns))
        return
    constraint = f"SELECT FROM pg_constraint WHERE conrelid = '{table}'::regclass AND conname = '{name}'"
    create_index(name, table, columns, unique=True)
    execute(
        table,
        f"DO $$ BEGIN IF NOT EXISTS ({constraint}) THEN\n"
        f"    ALTER TABLE {table} ADD CONSTRAINT {name} UNIQUE USING INDEX {name};\nEND IF; END $$",
    )


def drop_check(table: str, name: str) -> None:
    """Drop ``ck_{table}_{name}``."""
    drop_constraint(table, f"ck_{table}_{name}")


def drop_constraint(table: str, name: str) -> None:
    """Drop a constraint by its whole name."""
    execute(table, f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")


def update(table: str, changes: str, where: str, *, key: str = "id") -> None:
    """Change rows in batches that are committed one by one. A changed row must not match ``where`` any more."""
    if empty_database():
        return
    statement = f"""DO $$
DECLARE
    batch record;
BEGIN
    FOR batch IN
        SELECT array_agg({key}) AS keys
        FROM (SELECT {key}, row_number() OVER (ORDER BY {key}) AS number FROM {table} WHERE {where}) AS numbered
        GROUP BY number / {BATCH_ROWS}
    LOOP
        UPDATE {table} SET {changes} WHERE {key} = ANY (batch.keys) AND ({where});
        COMMIT;
    END LOOP;
END $$"""
    scan(table, lambda: op.execute(statement), quiet=False)


def _refuse_rows(table: str, rules: Mapping[str, str], key: str) -> None:
    found = "\nUNION ALL ".join(
        f"SELECT '{table}: ' || count(*) || ' rows break {name}, first: ' || (SELECT string_agg(concat_ws('/', "
        f"{key}), ', ') FROM (SELECT {key} FROM {table} WHERE NOT ({rule}) ORDER BY {key} LIMIT {IDS_SHOWN}) "
        f"AS first) AS line FROM {table} WHERE NOT ({rule}) HAVING count(*) > 0"
        for name, rule in rules.items()
    )
    refuse(BROKEN.format(f"the table {table}"), found, table)


def _unless_constraint(table: str, name: str, rule: str) -> str:
    """ALTER TABLE has no IF NOT EXISTS for a constraint."""
    return (
        f"IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = '{table}'::regclass AND conname = '{name}') "
        f"THEN\n    ALTER TABLE {table} ADD CONSTRAINT {name} {rule};\nEND IF;"
    )


def _not_valid() -> str:
    return "" if empty_database() else " NOT VALID"


def _validate(table: str, names: Sequence[str] | Mapping[str, str]) -> None:
    """Hold the rows that exist to constraints, in one scan. A valid one costs nothing."""
    if not empty_database():
        validated = ", ".join(f"VALIDATE CONSTRAINT {name}" for name in names)
        scan(table, lambda: op.execute(f"ALTER TABLE {table} {validated}"))


def _drop_leftover(name: str) -> None:
    """Drop an index that its build left invalid. A script cannot decide to drop it concurrently."""
    if empty_database():
        return
    invalid = f"SELECT FROM pg_index WHERE indexrelid = to_regclass('{name}') AND NOT indisvalid"
    if op.get_context().as_sql:
        limit = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"
        op.execute(f"DO $$ BEGIN IF EXISTS ({invalid}) THEN {limit}; DROP INDEX {name}; END IF; END $$")
    elif op.get_bind().execute(sa.text(invalid)).first() is not None:
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
