"""``pixtrawl env``: where the services in use are, for a shell. Starts nothing: they would stop again at once."""

import shlex

import click
from pydantic import SecretStr
from sqlalchemy import URL, make_url

from models.settings import Settings, read_settings
from scheduler.commands.options import json_option
from scheduler.devstack import Layout
from scheduler.printing import print_json
from scheduler.servers import ServicesError


@click.command()
@json_option
def env(as_json: bool) -> None:
    """Print the export lines with which psql, celery and alembic join the services in use.

    Use it as: eval "$(pixtrawl env)". Embedded services must be running.
    """
    variables = variables_of(running(read_settings()))
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def running(settings: Settings) -> Settings:
    """Settings with both URLs. Raises ServicesError when embedded services are wanted and do not run."""
    from models.database import UnreachableError, ping

    if not settings.embedded:
        return settings
    layout = Layout(settings.home)
    services = layout.read(layout.record)
    try:
        if services is not None and settings.database_url is None:
            ping(services.database_url)
    except UnreachableError:
        services = None
    if services is None:
        raise ServicesError(
            f"The embedded services of {settings.home} are not running: start `pixtrawl up` in another "
            "terminal first."
        )
    return settings.model_copy(
        update={
            "database_url": settings.database_url or SecretStr(services.database_url),
            "redis_url": settings.redis_url or SecretStr(services.redis_url),
        }
    )


def variables_of(settings: Settings) -> dict[str, str]:
    """The variables of Pixtrawl and, for psql, of libpq."""
    url = make_url(settings.sqlalchemy_url)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    variables = {
        "PIXTRAWL_HOME": str(settings.home),
        "PIXTRAWL_DATABASE_URL": plain,
        "PIXTRAWL_REDIS_URL": settings.broker_url,
    }
    return variables | {name: str(value) for name, value in libpq(url).items() if value}


def libpq(url: URL) -> dict[str, object]:
    """A URL's parts under libpq's names; a socket's folder is the host in the query."""
    host = url.query.get("host")
    return {
        "PGHOST": url.host or (host if isinstance(host, str) else None),
        "PGPORT": url.port or url.query.get("port"),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
    }
