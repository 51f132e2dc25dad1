"""What a PostgreSQL server was asked, from its own log, and which of it loads mapped objects whole."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from models import Base

STATEMENT = re.compile(r"^(?P<application>[^|\n]*)\|LOG:  statement: ", re.MULTILINE)
ANY_LINE = re.compile(r"^[^|\t\n]*\|[A-Z]+:  ", re.MULTILINE)
SOURCE = re.compile(r"\b(?:FROM|JOIN|,)\s+(\w+)(?:\s+AS)?(?:\s+(\w+))?", re.IGNORECASE)
COLUMNS = {
    mapper.local_table.name: {
        str(attribute.columns[0].name) for attribute in mapper.column_attrs if not attribute.deferred
    }
    for mapper in Base.registry.mappers
    if mapper.relationships
}
"""What the mapper of a table that has relationships loads."""


@dataclass(frozen=True, slots=True)
class Logged:
    """One statement, and the name of the session that sent it."""

    application: str
    statement: str

    @property
    def shape(self) -> str:
        """The statement without its values, in one line."""
        words = re.sub(r"'(?:[^']|'')*'|\b-?\d+\b", "?", self.statement)
        return " ".join(words.split())[:120]

    @property
    def tables(self) -> set[str]:
        """Tables of ours that it names."""
        return Base.metadata.tables.keys() & set(re.findall(r"\w+", self.statement))


class StatementLog:
    """The part of a server's log that was not read yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size

    def read(self) -> list[Logged]:
        """Every statement since the last call, in the order in which the server began them."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read().decode("utf-8", "replace")
            self.offset = file.tell()
        logged = []
        for match in STATEMENT.finditer(text):
            following = ANY_LINE.search(text, match.end())
            end = following.start() if following else len(text)
            logged.append(Logged(match["application"], text[match.end() : end].strip()))
        return logged


@contextmanager
def statement_log(administration: Engine, path: Path) -> Iterator[StatementLog]:
    """Every statement of every session of the server is logged meanwhile. ``path`` is the server's log."""
    settings = {"log_statement": "all", "log_line_prefix": "%%a|"}
    with administration.connect() as connection:
        for name, value in settings.items():
            connection.exec_driver_sql(f"ALTER SYSTEM SET {name} = '{value}'")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    try:
        yield StatementLog(path)
    finally:
        with administration.connect() as connection:
            for name in settings:
                connection.exec_driver_sql(f"ALTER SYSTEM RESET {name}")
            connection.exec_driver_sql("SELECT pg_reload_conf()")


def loaded(statement: str) -> set[str]:
    """Tables of which a SELECT loads whole rows, as a mapper or ``*`` does, each mapped with relationships."""
    if not re.match(r"\s*(SELECT|WITH)\b", statement, re.IGNORECASE):
        return set()
    tables = set()
    for table, alias in SOURCE.findall(statement):
        if table not in COLUMNS:
            continue
        for name in {table, alias or table}:
            selected = set(re.findall(rf"\b{name}\.(\w+)\b", statement))
            if selected >= COLUMNS[table] or re.search(rf"\b{name}\.\*", statement):
                tables.add(table)
        if re.search(rf"SELECT\s+\*\s+FROM\s+{table}\b", statement, re.IGNORECASE):
            tables.add(table)
    return tables
