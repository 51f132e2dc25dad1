"""Rows whose parent does not exist: the questions that find them, for revision 003 and `pixtrawl db orphans`.

It asks only. What becomes of an orphan is its owner's decision.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Table, text

from models.base import Base

IDS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reference:
    """``table.column`` holds the id of a row of ``parent``; ``key`` is the primary key of ``table``."""

    table: str
    column: str
    parent: str
    key: str = "id"


@dataclass(frozen=True, slots=True)
class Orphans:
    """The rows of one reference whose parent does not exist: how many, and the keys of the first."""

    table: str
    column: str
    parent: str
    rows: int
    first_ids: list[str]

    def __str__(self) -> str:
        where = f"{self.table}.{self.column} -> {self.parent}.id"
        return f"{where}, rows: {self.rows}, first ids: {', '.join(self.first_ids)}"

    def to_json(self) -> dict[str, Any]:
        """As ``pixtrawl db orphans --json`` prints them."""
        return asdict(self)


def question(reference: Reference) -> str:
    """SELECT of (rows, first_ids) when ``reference`` has orphans, else of no row.

    The server keeps a million of them on its disk and sorts out the first few: its memory stays bounded.
    """
    table, column, parent, key = reference.table, reference.column, reference.parent, reference.key
    return f"""
WITH orphan AS MATERIALIZED (
    SELECT {key} FROM {table} AS child WHERE child.{column} IS NOT NULL
        AND NOT EXISTS (SELECT FROM {parent} AS parent WHERE parent.id = child.{column})
)
SELECT count(*) AS rows,
    ARRAY (SELECT concat_ws('/', {key}) FROM orphan ORDER BY {key} LIMIT {IDS_SHOWN}) AS first_ids
FROM orphan HAVING count(*) > 0"""


def lines(references: Sequence[Reference]) -> str:
    """SELECT of one line of text for each reference that has orphans, as ``str(Orphans)`` says it."""
    return "\nUNION ALL".join(
        f"\nSELECT '{it.table}.{it.column} -> {it.parent}.id, rows: ' || rows || ', first ids: ' || "
        f"array_to_string(first_ids, ', ') AS line FROM ({question(it)}) AS found"
        for it in references
    )


def find_orphans(connection: Connection, references: Sequence[Reference]) -> list[Orphans]:
    """The orphans of each reference; those whose table or column the database does not have yet are left out."""
    found = []
    for reference in references:
        if not _exists(connection, reference):
            continue
        row = connection.execute(text(question(reference))).one_or_none()
        if row is not None:
            found.append(
                Orphans(reference.table, reference.column, reference.parent, row.rows, row.first_ids)
            )
    return found


def references() -> list[Reference]:
    """Every foreign key that the models declare, parents first."""
    return [
        Reference(table.name, key.parent.name, key.column.table.name, _primary_key(table))
        for table in Base.metadata.sorted_tables
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name)
    ]


def _primary_key(table: Table) -> str:
    return ", ".join(column.name for column in table.primary_key)


def _exists(connection: Connection, reference: Reference) -> bool:
    known = text("""
SELECT to_regclass(:parent) IS NOT NULL AND EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = :column AND NOT attisdropped
)""")
    names = {"parent": reference.parent, "table": reference.table, "column": reference.column}
    return bool(connection.execute(known, names).scalar_one())
