"""How Alembic reaches the database: online under one advisory lock, or as a script of SQL.

It owns no table: models/ declares them, versions/ leads there one revision at a time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.config import fileConfig

from alembic.util import CommandError
from psycopg2.extensions import get_wait_callback, set_wait_callback
from psycopg2.extras import wait_select
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic import context
from models import Base
from models.database import make_engine, masked
from models.settings import SettingsError, read_settings
from models.steps import LOCK_TIMEOUT_SECONDS

# The key is this project's own within its database: no other advisory lock of the project may use it.
LOCK_KEY = int.from_bytes(b"migrate", "big")
LOCK_WAIT_SECONDS_MAX = 600.0
LOCK_POLL_SECONDS = 0.2

# models.steps says for each statement how long it may wait for a lock; this is for what revisions do besides.
LOCK_TIMEOUT = f"{LOCK_TIMEOUT_SECONDS}s"

on_command_line = context.config.config_file_name is not None


def database_url() -> str:
    """URL from the caller of models.database.migrate(), else from the environment."""
    given = context.config.attributes.get("url")
    if given is not None:
        return str(given)
    try:
        url = read_settings().database_url
    except SettingsError as error:
        raise CommandError(str(error)) from None
    if url is None:
        raise CommandError(
            "PIXTRAWL_DATABASE_URL is not set: set it to your PostgreSQL, "
            'or run `eval "$(pixtrawl env)"` to use the embedded one.'
        )
    return url.get_secret_value()


@contextmanager
def connected() -> Iterator[Connection]:
    """A connection of our own that is closed at the end. A caller's would not do: revisions commit."""
    engine = make_engine(
        database_url(),
        application_name="pixtrawl migrate",
        lock_timeout=LOCK_TIMEOUT,
        statement_timeout="0",
        idle_in_transaction_session_timeout="60s",
    )
    try:
        with engine.connect() as connection, interruptible():
            end_with_this_process(connection)
            yield connection
    except DBAPIError as error:
        if not on_command_line:
            raise
        # An operator reads what the server said; the statement and its stack would bury it.
        raise CommandError(f"{masked(engine.url)}: {str(error.orig).strip()}") from None
    finally:
        engine.dispose()


def end_with_this_process(connection: Connection) -> None:
    """Have the server notice that this process was killed: else it finishes its statement, and keeps the lock."""
    with suppress(DBAPIError):
        # Not every system that PostgreSQL runs on can notice.
        connection.execute(text("SET client_connection_check_interval = '2s'"))
        connection.commit()
    connection.rollback()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C cancel a statement: by itself the driver would finish an hour's index build first.

    The driver has one callback for all connections: it stays as it is where other threads may use some.
    """
    if threading.active_count() > 1:
        yield
        return
    before = get_wait_callback()
    set_wait_callback(wait_select)
    try:
        yield
    finally:
        set_wait_callback(before)


@contextmanager
def only_migration(connection: Connection) -> Iterator[None]:
    """Hold the migration lock of the database, through all commits, until the session ends or is done.

    It is polled: CREATE INDEX CONCURRENTLY waits for every session that waits in ``pg_advisory_lock``, and
    those wait for its session, which is a deadlock.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS_MAX
    while not _answer(connection, f"SELECT pg_try_advisory_lock({LOCK_KEY})"):
        if time.monotonic() > deadline:
            raise CommandError(
                f"Another process has been migrating this database for {LOCK_WAIT_SECONDS_MAX:.0f} seconds: "
                "wait until it is done and run this again."
            )
        time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            _answer(connection, f"SELECT pg_advisory_unlock({LOCK_KEY})")


def _answer(connection: Connection, question: str) -> bool:
    """One boolean; no transaction of ours stays open, Alembic would take it for its caller's."""
    answer = connection.execute(text(question)).scalar_one()
    connection.commit()
    return bool(answer)


def refuse_unknown_revision(connection: Connection) -> None:
    """Stop on a database that a newer program has migrated. ``stamp --purge`` may go on."""
    migration = context.get_context()
    if migration.purge:
        return
    known = {revision.revision for revision in context.script.walk_revisions()}
    unknown = set(migration.get_current_heads()) - known
    connection.rollback()
    if unknown:
        raise CommandError(
            f"The database is at revision {', '.join(unknown)}, which this program does not know: a newer Pixtrawl "
            "has migrated it. Nothing was changed: use that version or a later one."
        )


def run_online() -> None:
    """One transaction per revision, which models.ddl commits and begins anew around each of its steps."""
    with connected() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_server_default=True,
            autogenerate_plugins=["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
            transaction_per_migration=True,
        )
        refuse_unknown_revision(connection)
        if context.get_context().opts.get("dont_mutate"):
            context.run_migrations()
            return
        with only_migration(connection), context.begin_transaction():
            context.run_migrations()


def run_offline() -> None:
    """Print SQL; no database is asked.

    From an empty database it is one transaction of plain SQL. From a later revision it is a script for psql
    that changes tables in use: step by step as online, and it must stop at the first error.
    """
    in_steps = context.get_starting_revision_argument() not in {None, "base"}
    context.configure(
        url="postgresql+psycopg2://",
        target_metadata=Base.metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=in_steps,
    )
    if in_steps:
        context.get_context().impl.static_output("\\set ON_ERROR_STOP on")
    context.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    context.execute("SET statement_timeout = 0")
    with context.begin_transaction():
        context.run_migrations()


if on_command_line:
    fileConfig(str(context.config.config_file_name), disable_existing_loggers=False)
if context.is_offline_mode():
    run_offline()
else:
    run_online()
