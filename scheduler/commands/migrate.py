"""``pixtrawl migrate``: brings the database to this program's revision. Safe to run again, and at once."""

import click

from scheduler.commands.options import json_option
from scheduler.printing import print_json


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Bring the database to this program's revision; an empty one gets its first user, too."""
    from models.settings import read_settings
    from scheduler.connect import joined, upgrade_database

    with joined(read_settings()) as settings:
        before, after = upgrade_database(settings)
    if as_json:
        print_json({"from": before, "to": after})
    elif before == after:
        click.echo(f"The database is at revision {after}: nothing to do")
    else:
        click.echo(f"Migrated the database from {before or 'empty'} to {after}")
