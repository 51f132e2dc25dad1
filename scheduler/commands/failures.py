"""``pixtrawl failures``: every candidate of a job without an image, and why. Never holds more than a page."""

import csv
import datetime
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from sqlalchemy import Engine

from models.breakdown import host_of
from models.database import transaction
from models.failures import FIELDS, PAGE_POSITIONS, last_failure, list_failures
from models.outcomes import Reason
from scheduler.commands.jobs import job_argument
from scheduler.commands.options import json_option
from scheduler.connect import open_database
from scheduler.printing import print_table
from scheduler.progress import look_up

COLUMNS = ("POSITION", "REASON", "STATUS", "TRIES", "MS", "URL", "DETAIL")
NUMBERS = ("POSITION", "STATUS", "TRIES", "MS")
SPARE = ("DETAIL", "TRIES", "MS", "STATUS")
SHOWN = 20
ENCODE = json.JSONEncoder(ensure_ascii=False).encode


@click.command()
@job_argument
@click.option(
    "--reason",
    "reasons",
    type=click.Choice([reason.value for reason in Reason]),
    multiple=True,
    metavar="REASON",
    help="Only those for this reason; may be repeated.",
)
@click.option("--host", metavar="HOST", help="Only those of this host.")
@click.option(
    "--limit", type=click.IntRange(1), help=f"So many at most.  [default: all; of the table {SHOWN}]"
)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with a heading.")
def failures(
    job: int, reasons: tuple[str, ...], host: str | None, limit: int | None, as_json: bool, as_csv: bool
) -> None:
    """List candidates of a job that have no image, in the order of its list, with all that is known of each.

    A million are streamed in constant memory: --json prints one array with an object a line, --csv a table. A row
    from position to position_end stands for as many candidates. docs/outcomes.md says what the reasons mean.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv are two ways to print: give one of them.")
    with open_database() as (_, engine):
        with transaction(engine) as session:
            look_up(session, job)
        pages = read(engine, job, reasons, host_of(host))
        if as_json:
            print_lines(limited(pages, limit))
        elif as_csv:
            print_csv(limited(pages, limit))
        else:
            print_first(itertools.chain.from_iterable(pages), limit or SHOWN)


def read(
    engine: Engine, job_id: int, reasons: Sequence[str], host: str | None
) -> Iterator[list[dict[str, Any]]]:
    """Pages of failures, a transaction each."""
    with transaction(engine) as session:
        last = last_failure(session, job_id)
    for first in range(0, 0 if last is None else last + 1, PAGE_POSITIONS):
        with transaction(engine) as session:
            page = list_failures(session, job_id, first, reasons=reasons, host=host)
        for row in page:
            row["at"] = row["at"].astimezone(datetime.UTC).isoformat(timespec="milliseconds")
        yield page


def limited(pages: Iterable[list[dict[str, Any]]], limit: int | None) -> Iterator[list[dict[str, Any]]]:
    """Pages until ``limit`` rows were in them; none that is empty."""
    left = limit
    for page in pages:
        rows = page if left is None else page[:left]
        if rows:
            yield rows
        if left is not None:
            left -= len(rows)
            if left == 0:
                return


def print_lines(pages: Iterable[list[dict[str, Any]]]) -> None:
    """One JSON array, an object a line."""
    before = "[\n"
    for page in pages:
        click.echo(before + ",\n".join(ENCODE(row) for row in page), nl=False)
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")


def print_csv(pages: Iterable[list[dict[str, Any]]]) -> None:
    """A heading and a line for each row (RFC 4180, with plain line ends)."""
    for page in itertools.chain([[dict(zip(FIELDS, FIELDS, strict=True))]], pages):
        text = io.StringIO()
        rows = (row | {"evidence": cell(row["evidence"])} for row in page)
        csv.DictWriter(text, FIELDS, lineterminator="\n").writerows(rows)
        click.echo(text.getvalue(), nl=False)


def cell(evidence: object) -> object:
    """What an owner said, as one cell: JSON."""
    return ENCODE(evidence) if isinstance(evidence, dict) else evidence


def print_first(rows: Iterable[Mapping[str, Any]], limit: int) -> None:
    """A table of the first rows, and how to see the others."""
    shown = list(itertools.islice(rows, limit + 1))
    if not shown:
        click.echo("There is no such failure.", err=True)
        return
    cells = [
        (
            places(row),
            row["reason"],
            written(row["http_status"]),
            written(row["attempts"]),
            written(row["elapsed_ms"]),
            row["url"] or "",
            row["detail"] or "",
        )
        for row in shown[:limit]
    ]
    print_table(COLUMNS, cells, numbers=NUMBERS, spare=SPARE)
    if len(shown) > limit:
        click.echo(f"These are the first {limit}: --limit shows more, --json and --csv all.", err=True)


def places(row: Mapping[str, Any]) -> str:
    """A position, or a range of them: 7, 8-19."""
    if row["position"] == row["position_end"]:
        return str(row["position"])
    return f"{row['position']}-{row['position_end']}"


def written(number: int | None) -> str:
    """A number that may not be known."""
    return "" if number is None else str(number)
