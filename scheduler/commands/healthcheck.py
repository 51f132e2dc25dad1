"""``pixtrawl healthcheck``: one sentence and an exit code for a container engine. Starts and repairs nothing."""

from dataclasses import asdict

import click

from models.database import make_engine
from models.settings import read_settings
from scheduler.commands.env import running
from scheduler.commands.options import json_option
from scheduler.health import Health, check_scheduler, check_worker
from scheduler.printing import print_json


@click.command()
@click.option("--worker", "part", flag_value="worker", help="Only the worker of this host.")
@click.option("--scheduler", "part", flag_value="scheduler", help="Only the scheduler that leads.")
@json_option
def healthcheck(part: str | None, as_json: bool) -> int:
    """Tell whether the worker of this host and the leading scheduler make progress. Exits with 1 if not.

    A PostgreSQL or Redis that does not answer is no ill health: both wait for it and go on by themselves.
    """
    settings = read_settings()
    if settings.database_url is None:
        settings = running(settings)
    engine = make_engine(settings.sqlalchemy_url, pooled=False)
    found: list[Health] = []
    if part != "scheduler":
        found.append(check_worker(settings, engine))
    if part != "worker":
        found.append(check_scheduler(engine))
    healthy = all(health.healthy for health in found)
    if as_json:
        print_json({"healthy": healthy, "checks": [asdict(health) for health in found]})
    else:
        for health in found:
            click.echo(health.reason)
    return 0 if healthy else 1
