"""How Alembic reaches the database: online under one advisory lock, or as a script of SQL.

It owns no table: models/ declares them, versions/ leads there one revision at a time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.config import fileConfig

from alembic.util import CommandError
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from alembic import context
from models import Base
from models.database import make_engine, masked
from models.settings import SettingsError, read_settings

# The key is this project's own within its database: no other advisory lock of the project may use it.
LOCK_KEY = int.from_bytes(b"migrate", "big")
LOCK_WAIT_SECONDS_MAX = 600.0
LOCK_POLL_SECONDS = 0.2

# A statement that waits for a table lock makes every later query on the table wait behind it, so it gives up
# soon and the revision is rolled back; building an index may take as long as it takes.
LOCK_TIMEOUT = "5s"

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
    """The caller's connection, or one of our own that is closed at the end."""
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        yield given
        return
    engine = make_engine(
        database_url(),
        application_name="pixtrawl migrate",
        lock_timeout=LOCK_TIMEOUT,
        statement_timeout="0",
        idle_in_transaction_session_timeout="60s",
    )
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        if not on_command_line:
            raise
        # An operator reads what the server said; the statement and its stack would bury it.
        raise CommandError(f"{masked(engine.url)}: {str(error.orig).strip()}") from None
    finally:
        engine.dispose()


@contextmanager
def only_migration(connection: Connection) -> Iterator[None]:
    """Hold the migration lock. In a caller's transaction it is held until that transaction ends.

    It is polled: CREATE INDEX CONCURRENTLY waits for every session that waits in ``pg_advisory_lock``, and
    those wait for its session, which is a deadlock.
    """
    inside = connection.in_transaction()
    attempt = text(f"SELECT pg_try_advisory_{'xact_' if inside else ''}lock({LOCK_KEY})")
    deadline = time.monotonic() + LOCK_WAIT_SECONDS_MAX
    while not _answer(connection, attempt, commit=not inside):
        if time.monotonic() > deadline:
            raise CommandError(
                f"Another process has been migrating this database for {LOCK_WAIT_SECONDS_MAX:.0f} seconds: "
                "wait until it is done and run this again."
            )
        time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        if not inside and not connection.invalidated:
            connection.rollback()
            _answer(connection, text(f"SELECT pg_advisory_unlock({LOCK_KEY})"), commit=True)


def _answer(connection: Connection, question: TextClause, *, commit: bool) -> bool:
    """One boolean; no transaction of ours stays open, Alembic would take it for its caller's."""
    answer = connection.execute(question).scalar_one()
    if commit:
        connection.commit()
    return bool(answer)


def run_online() -> None:
    """One transaction per revision, so that a later one may leave it for CREATE INDEX CONCURRENTLY."""
    with connected() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_server_default=True,
            autogenerate_plugins=["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
            transaction_per_migration=True,
        )
        if context.get_context().opts.get("dont_mutate"):
            context.run_migrations()
            return
        with only_migration(connection), context.begin_transaction():
            context.run_migrations()


def run_offline() -> None:
    """Print SQL; no database is asked. One transaction, so that a failure leaves nothing of it."""
    context.configure(
        url="postgresql+psycopg2://",
        target_metadata=Base.metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    context.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    with context.begin_transaction():
        context.run_migrations()


if on_command_line:
    fileConfig(str(context.config.config_file_name), disable_existing_loggers=False)
if context.is_offline_mode():
    run_offline()
else:
    run_online()
