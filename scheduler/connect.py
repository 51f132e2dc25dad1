"""From the settings of a command to services that are there: joined, migrated, with a profile to act for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import SecretStr
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from models.database import (
    check_schema,
    connection_lost,
    first_line,
    make_engine,
    masked,
    migrate,
    ping,
    revisions,
    transaction,
)
from models.members import create_local_profile
from models.settings import Settings, read_settings
from scheduler.devstack import join

WAIT_SECONDS, WAIT_SECONDS_MAX = 0.5, 5.0
TABLES = text("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()")


@contextmanager
def connected(settings: Settings) -> Iterator[Settings]:
    """Settings with both URLs, for as long as the context is open.

    Embedded services are started or joined, and migrated. An external database that is empty is set up like a
    new embedded one; one at another revision is refused, because others may use it.

    Raises ServicesError, UnreachableError or SchemaError.
    """
    owned = settings.database_url is None
    with joined(settings) as reachable:
        _prepare_database(reachable, owned=owned)
        yield reachable


@contextmanager
def joined(settings: Settings) -> Iterator[Settings]:
    """Settings with both URLs, whatever the database holds: services that are not named are started or shared.

    Raises ServicesError.
    """
    if not settings.embedded:
        yield settings
        return
    wanted = {"database": settings.database_url is None, "redis": settings.redis_url is None}
    with join(settings.home, **wanted) as services:
        urls = {
            "database_url": settings.database_url or SecretStr(services.database_url),
            "redis_url": settings.redis_url or SecretStr(services.redis_url),
        }
        yield settings.model_copy(update=urls)


@contextmanager
def open_database() -> Iterator[tuple[Settings, Engine]]:
    """The settings of the environment and an engine on their database, as most commands need them.

    Raises SettingsError and what ``connected`` raises.
    """
    with connected(read_settings()) as settings:
        engine = make_engine(settings.sqlalchemy_url)
        try:
            yield settings, engine
        finally:
            engine.dispose()


def await_database(settings: Settings, wait: Callable[[float], bool], say: Callable[[str], None]) -> None:
    """Return once PostgreSQL answers, or ``wait(seconds)`` is true; says once that it is waited for.

    Raises SchemaError when it is at another revision than this program.
    """
    engine = make_engine(settings.sqlalchemy_url, pooled=False)
    seconds = WAIT_SECONDS
    while True:
        try:
            return check_schema(engine)
        except DBAPIError as error:
            if not connection_lost(error):
                raise
            if seconds == WAIT_SECONDS:
                say(
                    f"PostgreSQL is not reachable at {masked(engine.url)}, and is waited for: {first_line(error)}"
                )
        if wait(seconds):
            return None
        seconds = min(WAIT_SECONDS_MAX, 2 * seconds)


def upgrade_database(settings: Settings) -> tuple[str | None, str | None]:
    """Apply migrations, and return the revisions before and after; a database that was empty gets a profile.

    Raises UnreachableError, or SchemaError when the database's revision is of a newer program.
    """
    url = settings.sqlalchemy_url
    ping(url)
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            before, head = revisions(connection)
        migrate(url)
        if before is None:
            with transaction(engine) as session:
                create_local_profile(session, settings.user)
    finally:
        engine.dispose()
    return before, head


def _prepare_database(settings: Settings, *, owned: bool) -> None:
    """Bring the schema and the local profile where that is ours to do: in an embedded or an empty database."""
    url = settings.sqlalchemy_url
    ping(url)
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            current, head = revisions(connection)
            ours = owned or (current is None and not connection.execute(TABLES).scalar_one())
        if current != head and ours:
            migrate(url)
        check_schema(engine)
        if ours:
            with transaction(engine) as session:
                create_local_profile(session, settings.user)
    finally:
        engine.dispose()
