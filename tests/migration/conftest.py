"""A database without tables, and the programs that an operator has: alembic and psql."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.pool import NullPool

from scheduler.embedded_postgres import find_postgres
from tests.support.revisions import Run

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Engine]:
    """Engine on a database without tables that keeps no connection open."""
    engine = create_engine(empty_database_url, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(empty: Engine) -> Iterator[Connection]:
    """Connection in which each statement stands alone, so that it never blocks a migration."""
    with empty.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


@pytest.fixture
def alembic(empty_database_url: str) -> Run:
    """The command `alembic …`, run in the checkout."""

    def run(*arguments: str, url: str = empty_database_url) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("alembic"), *arguments],
            cwd=CHECKOUT,
            env=os.environ | {"PIXTRAWL_DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def psql(empty_database_url: str) -> Run:
    """The command `psql -f -` on the database, given a script."""
    url = make_url(empty_database_url).set(drivername="postgresql").render_as_string(hide_password=False)

    def run(script: str) -> subprocess.CompletedProcess[str]:
        command = [find_postgres().with_name("psql"), "--no-psqlrc", "--quiet", "-d", url, "-f", "-"]
        return subprocess.run(command, input=script, capture_output=True, text=True, timeout=120, check=False)

    return run
