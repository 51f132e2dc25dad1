"""A database for one measurement, on a server that runs, dropped afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.pool import NullPool

from models.database import make_engine, migrate
from models.settings import Settings


@contextmanager
def database(settings: Settings, name: str, *, waits_for_disk: bool = False) -> Iterator[Engine]:
    """A database at head that is dropped at the end."""
    server = create_engine(settings.sqlalchemy_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    url = make_url(settings.sqlalchemy_url).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0")
        if not waits_for_disk:
            # A commit that waits is slower; it leaves the same rows.
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    engine = make_engine(url, pool_size=5)
    try:
        migrate(url)
        yield engine
    finally:
        engine.dispose()
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        server.dispose()
