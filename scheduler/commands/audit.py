"""``pixtrawl credits audit``: prints where the books differ from the rows. models/audit.py compares."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import click
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.audit import Difference, differences
from models.database import make_engine, transaction
from scheduler.commands.account import owner_of
from scheduler.commands.options import json_option
from scheduler.connect import open_database
from scheduler.printing import count, counted

FAILED = 1
STATEMENT_TIMEOUT = "30min"
"""A page of a huge account may take its time."""


@click.command()
@click.option("--user", metavar="EMAIL", help="Only what is this user's.  [default: everybody]")
@json_option
def audit(user: str | None, as_json: bool) -> int:
    """Recompute every balance from its transactions and every charge from its images. Prints each difference,
    repairs nothing, and exits with 1 if there is one. Others work on meanwhile.
    """
    with open_database() as (settings, engine):
        with transaction(engine) as session:
            user_id = None if user is None else owner_of(session, user)
        # One huge job misleads the planner about pages of small ones: it is kept on the indexes.
        patient = make_engine(
            settings.sqlalchemy_url, statement_timeout=STATEMENT_TIMEOUT, enable_seqscan="off", jit="off"
        )
        try:
            with auditing(patient) as session:
                found = differences(session, user_id)
                total = print_list(found) if as_json else print_lines(found)
        finally:
            patient.dispose()
    if not as_json:
        click.echo(f"{counted(total, 'difference')}" if total else "No difference: the books are right")
    return FAILED if total else 0


def auditing(engine: Engine) -> Session:
    """A session that keeps no transaction open: whoever reads our output slowly holds nothing up."""
    return Session(engine.execution_options(isolation_level="AUTOCOMMIT"))


def print_lines(found: Iterator[Difference]) -> int:
    """A line for each difference, as it is found; how many."""
    total = 0
    for difference in found:
        total += 1
        places = (("job", difference.job), ("chunk", difference.chunk))
        where = "".join(f", {name} {number}" for name, number in places if number is not None)
        figures = f"expected {count(difference.expected)}, found {count(difference.found)}"
        click.echo(f"{difference.user}{where}: {difference.rule}: {figures}")
    return total


def print_list(found: Iterator[Difference]) -> int:
    """The same as one JSON array, which need not fit into memory; how many."""
    total = 0
    for difference in found:
        total += 1
        click.echo(("[\n  " if total == 1 else ",\n  ") + json.dumps(asdict(difference)), nl=False)
    click.echo("\n]" if total else "[]")
    return total
