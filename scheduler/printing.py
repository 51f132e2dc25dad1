"""How results reach standard output: JSON, tables and single lines; quantities as people read them.

Knows no database. Progress and hints go to standard error, never through here.
"""

import datetime
import json
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 400
"""Nothing is wrapped or cut off for a program that reads our output."""
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def print_json(document: object) -> None:
    """One JSON document, readable, on standard output."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def print_rich(renderable: RenderableType) -> None:
    """A renderable on standard output: with colours on a terminal, plain and unwrapped elsewhere."""
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, highlight=False, width=None if terminal else PLAIN_WIDTH)
    if terminal:
        console.print(renderable)
        return
    with console.capture() as capture:
        console.print(renderable)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[str] = (),
    spare: Iterable[str] = (),
) -> None:
    """A table with one heading a column; those in ``numbers`` are aligned to the right.

    A terminal that is too narrow is not shown the columns in ``spare``: one after another goes, until it fits.
    """
    rows = list(rows)
    shown = list(columns)
    wanted = partial(_table, columns, rows, set(numbers))
    if sys.stdout.isatty():
        console = Console(file=sys.stdout)
        for column in spare:
            if console.measure(wanted(shown)).maximum < console.width:
                break
            shown.remove(column)
    print_rich(wanted(shown))


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Container[str], shown: Sequence[str]
) -> Table:
    table = Table(box=SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in shown:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    places = [columns.index(column) for column in shown]
    for row in rows:
        table.add_row(*(Text(row[place]) for place in places))
    return table


def count(number: float) -> str:
    """A number with thousands separated: 12,345."""
    return f"{number:,.0f}"


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 candidate, 2,000 candidates."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def clipped(text: str, characters: int = 40) -> str:
    """Text that is too long for a table, without its middle."""
    half = (characters - 1) // 2
    return text if len(text) <= characters else f"{text[:half]}…{text[-half:]}"


def size(number: float) -> str:
    """Bytes: 75.3 MB."""
    for unit, name in SIZES:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} bytes"


def duration(seconds: float) -> str:
    """A time span: 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def moment(iso: str | None) -> str:
    """A time of a report in the zone of the reader; nothing when it has not come."""
    if iso is None:
        return ""
    return datetime.datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def place(url: str) -> str:
    """Where images are: a path when they are files here, else the URL."""
    parts = urlsplit(url)
    return str(Path(unquote(parts.path))) if parts.scheme == "file" else url


def state(job: Mapping[str, Any]) -> str:
    """A job's status as people see it: also being deleted or cancelled, paused, or blocked and by what."""
    if job["deleting"]:
        return "being deleted"
    if job["status"] not in {"pending", "running"}:
        return str(job["status"])
    if job["cancelled"]:
        return "being cancelled"
    if job["paused"]:
        return "paused"
    if job["blocked_reason"]:
        return f"blocked: {job['blocked_reason'].replace('_', ' ')}"
    return str(job["status"])
