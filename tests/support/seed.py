"""The seed: a schema reference that other services rely on. Its text stands beside this file, byte for byte, and
is cut here into what tests check and run; no word of it is changed but ``backend.models``, our ``models``.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

import models
from tests.support.statements import sent

# Not named .md: `ruff format` would write Python in it anew.
PATH = Path(__file__).with_name("SEED_database_quick_reference.txt")
SHA256 = "4ec3ff56502b49fb89d2eac9d2b45d3fd269c8681c98f136947f83a73d570b64"
TEXT = PATH.read_text()
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
BULLET = re.compile(r"^- (?:`([^`]+)`|\*\*([^*]+)\*\*)(?: - |: )(.*)$", re.MULTILINE)
EDGE = re.compile(r"^(\w+) \(1\) ──FK── \((many|1)\) (\w+)$", re.MULTILINE)


def _headings() -> Iterator[tuple[str, int]]:
    """(heading, where it begins); a comment in a snippet is none."""
    hidden = FENCE.sub(lambda fence: " " * len(fence[0]), TEXT)
    yield from ((match[1], match.start()) for match in re.finditer(r"^#+ (.*)$", hidden, re.MULTILINE))
    yield "", len(TEXT)


SECTIONS = {title: TEXT[start:end] for (title, start), (_, end) in pairwise(_headings())}
"""{heading: what stands below it, up to the next heading}."""


def snippets(title: str) -> list[str]:
    """The Python of a section, as it stands but for the import path."""
    found = [code for language, code in FENCE.findall(SECTIONS[title]) if language == "python"]
    return [
        textwrap.dedent(code).replace("from backend.models import", "from models import") for code in found
    ]


def part(code: str, word: str) -> str:
    """The lines of a snippet below its comment that begins with ``word`` ('Good', 'Avoid', 'Bad')."""
    parts: list[str] = re.split(r"^(?=# (?:Good|Avoid|Bad) )", code, flags=re.MULTILINE)
    return next(str(lines) for lines in parts if lines.startswith(f"# {word} "))


def quoted(title: str) -> str:
    """What a section quotes in its only fence that is not Python."""
    return next(str(code) for language, code in FENCE.findall(SECTIONS[title]) if language != "python")


def bullets(title: str) -> dict[str, str]:
    """{term: what is said of it} of a section's list."""
    return {code or bold: said for code, bold, said in BULLET.findall(SECTIONS[title])}


def foreign_keys() -> list[tuple[str, str, str]]:
    """(parent, 'many' or '1', child), by model name."""
    edges: list[tuple[str, str, str]] = EDGE.findall(quoted("Foreign Key Relationships"))
    return [(parent, child, number) for parent, number, child in edges]


def cascades() -> dict[str, list[str]]:
    """{deleted model: the models that it says go with it}."""
    rows = re.findall(r"^\| (\w+) \| ([\w, ]+) \|$", SECTIONS["Cascade Delete Behavior"], re.MULTILINE)
    return {
        parent: [name.removesuffix("s") for name in gone.split(", ")]
        for parent, gone in rows
        if parent != "Delete"
    }


def status_words() -> dict[str, list[str]]:
    """{'table.column': words}. What the seed lists as a notification's status is its ``type``."""
    columns = {"Notification": "type"}
    return {
        f"{table_of(model)}.{columns.get(model, 'status')}": words.split(", ")
        for model, words in bullets("Status Values").items()
    }


def ranges() -> dict[str, tuple[int, int | None]]:
    """{'table.column': (lowest, highest or None)}."""
    found = {}
    for place, said in bullets("Ranges").items():
        model, column = place.split(".")
        [(low, high)] = re.findall(r"^(?:>= )?(\d+)(?:-(\d+))?(?: \(.*\))?$", said)
        found[f"{table_of(model)}.{column}"] = (int(low), int(high) if high else None)
    return found


def place(text: str) -> tuple[str, list[str]]:
    """(table, columns) of ``table.column`` or ``table.(column, column)``."""
    table, columns = text.split(".")
    return table, columns.strip("()").split(", ")


def table_of(model: str) -> str:
    """Where the rows of a model of the seed stand."""
    return str(getattr(models, model).__tablename__)


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a snippet: its value when it is an expression, and the SQL that it sent."""

    value: Any
    sent: list[str]


class Shell:
    """A Python shell on one session, in which the seed's imports were typed first."""

    def __init__(self, session: Session, **names: Any) -> None:
        self.session = session
        self.names: dict[str, Any] = {}
        self.type(*snippets("Model Imports"))
        self.names |= {"session": session, **names}

    def type(self, code: str) -> list[Step]:
        """Run every statement of ``code``, one after the other."""
        steps = []
        for statement in ast.parse(code).body:
            with sent(self.session.get_bind()) as statements:
                steps.append(Step(self._run(statement), statements))
        return steps

    def _run(self, statement: ast.stmt) -> Any:
        if isinstance(statement, ast.Expr):
            expression = compile(ast.Expression(statement.value), "<seed>", "eval")
            return eval(expression, self.names)  # noqa: S307 - the seed's own text, which this file holds.
        program = compile(ast.Module([statement], []), "<seed>", "exec")
        exec(program, self.names)  # noqa: S102 - the same.
        return None

    def __getitem__(self, name: str) -> Any:
        return self.names[name]
