"""Sees what PostgreSQL does with each statement of a function: its plan, the rows and the pages that it touched.

A statement is explained inside the transaction that is about to run it, and undone before it runs: the plan is
that of this very moment, and the function notices nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Engine, event

EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


@dataclass(frozen=True, slots=True)
class Explained:
    """One statement with its values, and its plan as PostgreSQL's JSON has it; ``drawing``: for people."""

    statement: str
    plan: dict[str, Any]
    drawing: str = ""

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Every node of the plan that was reached."""
        waiting = [self.plan["Plan"]]
        while waiting:
            node = waiting.pop()
            if node.get("Actual Loops", 1):
                yield node
            waiting += node.get("Plans", ())

    @property
    def milliseconds(self) -> float:
        """Time in the server, with triggers, without the way to the client and back."""
        return float(self.plan["Planning Time"] + self.plan["Execution Time"])

    @property
    def pages(self) -> int:
        """Pages of 8 kB that were looked at, in memory or not."""
        top = self.plan["Plan"]
        return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])

    @property
    def indexes(self) -> set[str]:
        """Indexes that were used."""
        return {node["Index Name"] for node in self.nodes() if "Index Name" in node}

    @property
    def scanned(self) -> set[str]:
        """Tables that were read from the beginning to the end."""
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"] == "Seq Scan"}


class Explainer:
    """Explains the statements of each step while it is open; ``steps`` has them by the step's name."""

    def __init__(self, engine: Engine, *, draw: bool = False) -> None:
        self.engine = engine
        self.draw = draw
        self.steps: dict[str, list[Explained]] = {}
        self.name = ""

    def __enter__(self) -> Self:
        event.listen(self.engine, "before_cursor_execute", self._explain)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self.engine, "before_cursor_execute", self._explain)

    def around(self, name: str, function: Callable[[], Any]) -> Any:
        """Call the function and keep what its statements do under its name."""
        self.name = name
        try:
            return function()
        finally:
            self.name = ""

    def _explain(
        self, _connection: Any, cursor: Any, statement: str, values: Any, _context: Any, _many: bool
    ) -> None:
        if not self.name or not statement.lstrip().upper().startswith(EXPLAINED):
            return
        rendered = cursor.mogrify(statement, values).decode()
        with cursor.connection.cursor() as aside:
            [(plan,)] = undone(aside, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {rendered}")
            lines = undone(aside, f"EXPLAIN (ANALYZE, BUFFERS) {rendered}") if self.draw else []
        explained = Explained(rendered, plan[0], "\n".join(line for (line,) in lines))
        self.steps.setdefault(self.name, []).append(explained)


def undone(cursor: Any, statement: str) -> list[tuple[Any, ...]]:
    """The rows of a statement inside a transaction, without what it did."""
    cursor.execute("SAVEPOINT explained")
    cursor.execute(statement)
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    cursor.execute("ROLLBACK TO SAVEPOINT explained")
    cursor.execute("RELEASE SAVEPOINT explained")
    return rows
