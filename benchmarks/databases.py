"""Databases for one measurement each, on a server that runs, dropped afterwards; and filled ones to copy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from models.database import make_engine, migrate
from models.settings import Settings

EXISTS = text("SELECT FROM pg_database WHERE datname = :name")


@contextmanager
def database(settings: Settings, name: str, *, waits_for_disk: bool = False) -> Iterator[Engine]:
    """A database at head that is dropped at the end."""
    with _server(settings) as server:
        server.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0")
        if not waits_for_disk:
            # A commit that waits is slower; it leaves the same rows.
            server.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
        with _opened(settings, name, server) as engine:
            migrate(engine.url.render_as_string(hide_password=False))
            yield engine


def filled(settings: Settings, name: str, fill: Callable[[Engine], object]) -> None:
    """Make a database at head with these rows, unless there is one of this name. It stays as long as its server's
    home does.
    """
    with _server(settings) as server:
        if server.execute(EXISTS, {"name": name}).first() is not None:
            return
        half_made = f"{name}_new"
        server.exec_driver_sql(f"DROP DATABASE IF EXISTS {half_made} WITH (FORCE)")
        with database(settings, half_made) as engine:
            fill(engine)
            engine.dispose()
            server.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {half_made} STRATEGY file_copy")


@contextmanager
def copied(settings: Settings, original: str, name: str) -> Iterator[Engine]:
    """A copy of a database, whose commits wait for the disk; dropped at the end."""
    with _server(settings) as server:
        server.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {original} STRATEGY file_copy")
        with _opened(settings, name, server) as engine:
            yield engine


@contextmanager
def _server(settings: Settings) -> Iterator[Connection]:
    server = create_engine(settings.sqlalchemy_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with server.connect() as connection:
        # Copying a database writes all of it to the disk.
        connection.exec_driver_sql("SET statement_timeout = 0")
        yield connection


@contextmanager
def _opened(settings: Settings, name: str, server: Connection) -> Iterator[Engine]:
    url = make_url(settings.sqlalchemy_url).set(database=name).render_as_string(hide_password=False)
    engine = make_engine(url, pool_size=5)
    try:
        yield engine
    finally:
        engine.dispose()
        server.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
