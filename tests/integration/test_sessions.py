"""What a session may do to others when its process stops: nothing for more than ten seconds."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text

from models.database import make_engine
from scheduler.embedded_postgres import find_postgres
from tests.support.other_postgres import other_postgres
from tests.support.processes import free_port, until

READER = """
import sys
from sqlalchemy import text
from models.database import make_engine, transaction
with transaction(make_engine(sys.argv[1], tcp_user_timeout=sys.argv[2])) as session:
    session.execute(text("SELECT FROM hot FOR UPDATE"))
    session.execute(text("SELECT repeat('x', 1000) FROM generate_series(1, 2000000), pg_sleep(1)"))
"""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = :event"


@pytest.fixture(scope="module")
def tcp_url() -> Iterator[str]:
    """A server that is reached by TCP, with a table of one row."""
    with other_postgres(find_postgres().parent, free_port()) as url:
        engine = make_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE hot AS SELECT 0 AS touched"))
        engine.dispose()
        yield url


@contextmanager
def reader(url: str, seconds: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has locked the row, and asks for more than any buffer holds."""
    arguments = [sys.executable, "-c", READER, url, f"{seconds}s"]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def waits(engine: Engine, event: str) -> bool:
    """Whether some session of the server waits for ``event``."""
    with engine.connect() as connection:
        return bool(connection.execute(text(WAITING), {"event": event}).scalar_one())


def test_a_client_that_is_stopped_while_it_is_sent_to_blocks_nobody(tcp_url: str) -> None:
    """A stopped process that the server still sends to loses its transaction and its locks."""
    engine = make_engine(tcp_url, lock_timeout="10s")
    with reader(tcp_url, seconds=2) as process:
        until(lambda: waits(engine, "PgSleep"), "the reader's query")
        process.send_signal(signal.SIGSTOP)
        until(lambda: waits(engine, "ClientWrite"), "the server's waiting for its client")
        with engine.begin() as connection:
            connection.execute(text("UPDATE hot SET touched = touched + 1"))
    engine.dispose()


def test_both_sides_give_up_a_peer_that_takes_nothing_for_ten_seconds(tcp_url: str) -> None:
    """Every session of the program has the limit, at the server and in the driver."""
    engine = make_engine(tcp_url)
    with engine.connect() as connection:
        assert connection.execute(text("SHOW tcp_user_timeout")).scalar_one() in {"10s", "10000"}
        driver = connection.connection.driver_connection
        assert driver is not None
        assert driver.info.dsn_parameters["tcp_user_timeout"] == "10000"
    engine.dispose()
