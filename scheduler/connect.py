"""From the settings of a command to services that are there: joined, migrated, with a profile to act for."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pydantic import SecretStr
from sqlalchemy import text

from models.database import check_schema, make_engine, migrate, ping, revisions, transaction
from models.members import create_local_profile
from models.settings import Settings
from scheduler.devstack import join

TABLES = text("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()")


@contextmanager
def connected(settings: Settings) -> Iterator[Settings]:
    """Settings with both URLs, for as long as the context is open.

    Embedded services are started or joined, and migrated. An external database that is empty is set up like a
    new embedded one; one at another revision is refused, because others may use it.

    Raises ServicesError, UnreachableError or SchemaError.
    """
    embedded_database = settings.database_url is None
    with ExitStack() as stack:
        if settings.embedded:
            services = stack.enter_context(
                join(settings.home, database=embedded_database, redis=settings.redis_url is None)
            )
            settings = settings.model_copy(
                update={
                    "database_url": settings.database_url or SecretStr(services.database_url),
                    "redis_url": settings.redis_url or SecretStr(services.redis_url),
                }
            )
        _prepare_database(settings, owned=embedded_database)
        yield settings


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
