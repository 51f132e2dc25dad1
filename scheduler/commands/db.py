"""``pixtrawl db``: looks into the database, whatever its revision. It changes nothing."""

import click

from scheduler.commands.options import json_option
from scheduler.printing import count, counted, print_json, print_table

COLUMNS = ("TABLE", "COLUMN", "PARENT", "ROWS", "FIRST IDS")
FAILED = 1


@click.group()
def db() -> None:
    """Look into the database, whatever its revision."""


@db.command()
@json_option
def orphans(as_json: bool) -> int:
    """List rows whose parent does not exist.

    Revision 003 adds foreign keys and refuses them. Works on a database at any revision and changes
    nothing. Exit code 1 when there are some.
    """
    from models.database import make_engine, ping
    from models.orphans import find_orphans, references
    from models.settings import read_settings
    from scheduler.connect import joined

    with joined(read_settings()) as settings:
        ping(settings.sqlalchemy_url)
        engine = make_engine(settings.sqlalchemy_url, statement_timeout="0")
        try:
            with engine.connect() as connection:
                found = find_orphans(connection, references())
        finally:
            engine.dispose()
    if as_json:
        print_json({"orphans": [each.to_json() for each in found]})
    elif not found:
        click.echo("No orphans: every row has its parent")
    else:
        rows = [
            (it.table, it.column, f"{it.parent}.id", count(it.rows), ", ".join(it.first_ids)) for it in found
        ]
        print_table(COLUMNS, rows, numbers=("ROWS",))
        number = counted(sum(it.rows for it in found), "row")
        click.echo(
            f"{number} without a parent: give each a parent that exists or delete it, then run "
            "`pixtrawl migrate` (docs/MIGRATION_GUIDE.md shows how).",
            err=True,
        )
    return FAILED if found else 0
