"""What is sent to the database: the statements of a block, its commits, and how the planner would run one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ClauseElement, Connection, Engine, event


@contextmanager
def sent(engine: Engine | Connection) -> Iterator[list[str]]:
    """The SQL of every statement that the block sends, and COMMIT for each commit; without savepoints."""
    statements: list[str] = []

    def look(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "SAVEPOINT " not in statement:
            statements.append(statement)

    def committed(_connection: Any) -> None:
        statements.append("COMMIT")

    event.listen(engine, "before_cursor_execute", look)
    event.listen(engine, "commit", committed)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", look)
        event.remove(engine, "commit", committed)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the planner would run a statement: its kinds of node, the indexes it reads, and their conditions."""

    nodes: list[str]
    indexes: list[str]
    conditions: list[str]


def explain(connection: Connection, statement: ClauseElement) -> Plan:
    """The plan of a statement; it is not run."""
    compiled: Any = statement.compile(dialect=connection.dialect)
    sql = f"EXPLAIN (FORMAT JSON) {compiled}"
    [[[document]]] = connection.exec_driver_sql(sql, compiled.params).all()
    nodes = list(_walk(document["Plan"]))
    return Plan(
        [node["Node Type"] for node in nodes],
        [node["Index Name"] for node in nodes if "Index Name" in node],
        [node["Index Cond"] for node in nodes if "Index Cond" in node],
    )


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _walk(below)
