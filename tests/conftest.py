"""Real servers and databases for tests. A server starts when the first test asks for it, and is shared."""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from redis import Redis
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from models.database import make_engine, migrate
from tests.support.databases import Databases, numbers, of_database
from tests.support.other_postgres import other_postgres

if TYPE_CHECKING:
    from scheduler.devstack import Services

TEMPLATE = "template_at_head"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of slow tests over the list: each process of a run gets a piece, with its share of them."""
    files = {
        path: list(tests)
        for path, tests in itertools.groupby(items, key=lambda item: item.path)
        if path.parent.name == "acceptance"
    }
    quick = [item for item in items if item.path not in files]
    if not files or not quick:
        return
    step = len(quick) / len(files)
    spread: list[pytest.Item] = []
    for number, slow in enumerate(files.values()):
        spread += slow + quick[round(number * step) : round((number + 1) * step)]
    items[:] = spread


# Hundreds of processes are started: each would compile the program again, and each process of the run all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what it puts into the background with SIGINT ignored; every command under test would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the program has it: structlog's own default draws a traceback with every local, which takes seconds, and a
# leader whose session is idle for so long loses it.
structlog.configure(
    processors=[
        structlog.stdlib.add_log_level,
        structlog.dev.set_exc_info,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Services"]:
    """PostgreSQL and Valkey of this test run, as the embedded mode runs them.

    TEST_POSTGRES_BIN names the folder of another PostgreSQL's programs, which runs instead.
    """
    from scheduler.devstack import join

    binaries = os.environ.get("TEST_POSTGRES_BIN")
    with join(tmp_path_factory.mktemp("home")) as running:
        if not binaries:
            yield running
            return
        with other_postgres(Path(binaries)) as url:
            yield replace(running, database_url=url)


@pytest.fixture
def redis_url(services: "Services") -> Iterator[str]:
    """URL of the run's Valkey, in which no site is remembered: its port may have been another test's."""
    forget_sites(services.redis_url)
    yield services.redis_url
    forget_sites(services.redis_url)


def forget_sites(url: str) -> None:
    """Delete what is known of origins and providers."""
    with Redis(unix_socket_path=url.partition("://")[2]) as redis:
        for kind in ("robots", "tdmrep", "provider"):
            for key in redis.scan_iter(f"pixtrawl:{kind}:*"):
                redis.delete(key)


@pytest.fixture(scope="session")
def administration(services: "Services") -> Iterator[Engine]:
    """Engine that makes and drops databases."""
    engine = create_engine(
        of_database(services.database_url, "postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    with engine.connect() as connection:
        # Databases of a test run need not survive a power cut.
        connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def template(services: "Services", administration: Engine) -> str:
    """Name of a database at head that nobody connects to, so that it can be copied."""
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
    migrate(of_database(services.database_url, TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="session")
def databases(services: "Services", administration: Engine, template: str) -> Databases:
    """The databases that tests are lent."""
    return Databases(services.database_url, administration, template)


@pytest.fixture
def empty_database_url(services: "Services", administration: Engine) -> Iterator[str]:
    """URL of a fresh database without tables, dropped afterwards whoever is still connected."""
    name = f"empty_{next(numbers)}"
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0")
    yield of_database(services.database_url, name)
    with administration.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """URL of a database at this program's revision, without rows, and nobody else's until it is as it was."""
    with databases.lend() as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Engine on the fresh database, with the limits that the program's sessions have."""
    engine = make_engine(database_url, pool_size=5)
    yield engine
    engine.dispose()


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    """Session on the fresh database; a test may leave its transaction open for as long as a command takes."""
    engine = make_engine(database_url, idle_in_transaction_session_timeout="0")
    with Session(engine) as session:
        yield session
    engine.dispose()
