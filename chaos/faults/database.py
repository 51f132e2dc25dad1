"""PostgreSQL that restarts, ends sessions, answers late or never; connections cut at the worst moment."""

import random
import signal
import time

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from chaos.processes import send, until
from chaos.registry import BrokenPromiseError, fault
from chaos.servers import start
from chaos.system import System
from chaos.traps import SCHEDULER, STATEMENTS, TRAP_SECONDS_MAX, WORKER

COMMIT = b"COMMIT"
SLOW_COMMIT_MICROSECONDS = 100_000

BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name IN ('pixtrawl worker', 'pixtrawl scheduler')"
)
TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = :application AND pid <> pg_backend_pid()
"""


def _terminate(system: System, application: bytes) -> int:
    return int(system.query(TERMINATE, application=application.decode())[0][0])


@fault(full=15, deadline_seconds=120)
def restart_postgres_fast(system: System, _chance: random.Random) -> None:
    """PostgreSQL is stopped (fast: it ends every session) and started again."""
    system.postgres.stop()
    start(system.postgres)


@fault(full=15, deadline_seconds=120)
def restart_postgres_immediate(system: System, _chance: random.Random) -> None:
    """PostgreSQL is stopped (immediate: as in a crash, it recovers from its log) and started again."""
    send(system.postgres.pid, signal.SIGQUIT)
    until(lambda: not system.postgres.running(), "the end of PostgreSQL")
    start(system.postgres)


@fault(full=15, deadline_seconds=120)
def kill_postgres_backend(system: System, chance: random.Random) -> None:
    """SIGKILL of one of PostgreSQL's own processes, as when memory runs out: it ends all sessions and recovers."""
    backends = until(lambda: [row.pid for row in system.query(BACKENDS)], "a session of ours")
    with system.engine.connect() as connection:
        send(chance.choice(backends), signal.SIGKILL)
        until(lambda: _ended(connection), "the end of all sessions")
    system.query("SELECT")  # Waits until it has recovered.


def _ended(connection: Connection) -> bool:
    try:
        connection.exec_driver_sql("SELECT")
    except DBAPIError:
        return True
    return False


@fault(full=60)
def terminate_sessions_at_a_statement(system: System, chance: random.Random) -> None:
    """pg_terminate_backend of a worker's or the scheduler's sessions at any one of their statements."""
    who = chance.choice([WORKER, SCHEDULER])
    answered, skip = chance.random() < 0.5, chance.randrange(STATEMENTS)
    with system.database.trap(b"", who=who, answered=answered, held=True, skip=skip) as trap:
        trap.wait(TRAP_SECONDS_MAX)
        _terminate(system, who)


@fault(full=40)
def terminate_sessions_during_commit(system: System, chance: random.Random) -> None:
    """pg_terminate_backend while a COMMIT waits for the disk, which is made to last a tenth of a second."""
    who = chance.choice([WORKER, SCHEDULER])
    _configure(system, commit_delay=SLOW_COMMIT_MICROSECONDS, commit_siblings=0)
    try:
        with system.database.trap(COMMIT, who=who, held=True, answered=False) as trap:
            trap.wait(TRAP_SECONDS_MAX)
        time.sleep(chance.uniform(0, SLOW_COMMIT_MICROSECONDS / 1e6))
        _terminate(system, who)
    finally:
        _configure(system, commit_delay=None, commit_siblings=None)


def _configure(system: System, **settings: int | None) -> None:
    """Change settings of the running server; None is the default again."""
    with system.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name, value in settings.items():
            change = "RESET " + name if value is None else f"SET {name} = {value}"
            connection.exec_driver_sql(f"ALTER SYSTEM {change}")
        connection.exec_driver_sql("SELECT pg_reload_conf()")


@fault(full=60)
def cut_after_commit_was_sent(system: System, chance: random.Random) -> None:
    """A connection is cut when its COMMIT succeeded, before the client reads so."""
    _cut_at_commit(system, chance, answered=True)


@fault(full=60)
def cut_before_commit_arrives(system: System, chance: random.Random) -> None:
    """A connection is cut when its COMMIT was sent, before the server reads it."""
    _cut_at_commit(system, chance, answered=False)


def _cut_at_commit(system: System, chance: random.Random, *, answered: bool) -> None:
    who = chance.choice([WORKER, WORKER, SCHEDULER, b"chaos crowd"])
    skip = chance.randrange(3)
    with system.database.trap(COMMIT, who=who, answered=answered, skip=skip) as trap:
        trap.wait(TRAP_SECONDS_MAX)


@fault(full=50)
def reset_database_connections(system: System, _chance: random.Random) -> None:
    """Every connection to PostgreSQL is reset."""
    system.database.reset()


@fault(full=5)
def refuse_database_connections(system: System, chance: random.Random) -> None:
    """PostgreSQL cannot be reached for a while."""
    with system.database.refusing():
        time.sleep(chance.uniform(5, 20) if system.full else 2)


@fault(full=2, deadline_seconds=120)
def black_hole_database(system: System, chance: random.Random) -> None:
    """PostgreSQL is silent for a minute (short: seconds), and no connection survives that."""
    with system.database.black_hole():
        time.sleep(60 if system.full else chance.uniform(3, 5))


@fault(full=5)
def slow_database(system: System, chance: random.Random) -> None:
    """Every packet to and from PostgreSQL takes 50 ms for a while."""
    with system.database.latency(0.05):
        time.sleep(chance.uniform(5, 20) if system.full else 2)


@fault(full=5)
def slow_commits(system: System, _chance: random.Random) -> None:
    """Every COMMIT takes a tenth of a second for a while: nothing may time out or be written twice."""
    _configure(system, commit_delay=SLOW_COMMIT_MICROSECONDS, commit_siblings=0)
    try:
        time.sleep(5 if system.full else 2)
    finally:
        _configure(system, commit_delay=None, commit_siblings=None)


@fault(full=5, deadline_seconds=120)
def migrate_while_running(system: System, _chance: random.Random) -> None:
    """``pixtrawl migrate`` again while everything is at work: there is nothing to do, and nobody waits."""
    began = time.monotonic()
    part = system.command("migrate")
    if part.returncode != 0:
        raise BrokenPromiseError(f"pixtrawl migrate ended with {part.returncode}: {part.stderr.strip()}")
    if time.monotonic() - began > 20:
        raise BrokenPromiseError("pixtrawl migrate took more than 20 s with nothing to do")
