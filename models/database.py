"""Connections to PostgreSQL: engines with the timeouts that keep a stopped process from blocking others,
and the migrations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from alembic.config import Config

REVISION = "020"
"""The newest migration. A command must not need Alembic, which is slow to import, to compare it."""

SESSION_LIMITS = {
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    # A client that is stopped while the server sends to it is not idle: only this ends its transaction.
    "tcp_user_timeout": "10s",
}
KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # Keepalives rest while something sent is unacknowledged: a partition would be noticed after 15 minutes.
    "tcp_user_timeout": 10_000,
}


class UnreachableError(Exception):
    """The database cannot be reached. The message is one sentence that names no password."""


class SchemaError(Exception):
    """The database is at another revision than this program. The message says what to run."""


def make_engine(
    url: str,
    *,
    pooled: bool = True,
    pool_size: int = 1,
    application_name: str = "pixtrawl",
    **limits: str,
) -> Engine:
    """Engine whose sessions carry SESSION_LIMITS, overridden or extended by ``limits`` (``name="10s"``).

    Without a pool every connection is closed after its use: none is there for a fork to inherit.
    """
    options = " ".join(f"-c {name}={value}" for name, value in (SESSION_LIMITS | limits).items())
    pool: dict[str, Any] = {"poolclass": NullPool}
    if pooled:
        pool = {"pool_size": pool_size, "max_overflow": 2, "pool_pre_ping": True}
    return create_engine(
        url,
        **pool,
        connect_args={
            "options": options,
            "application_name": application_name,
            "connect_timeout": 10,
            **KEEPALIVES,
        },
    )


def masked(url: URL) -> str:
    """A URL that may be shown: without its password, which libpq also takes from the query."""
    secret = {name: "hidden" for name in url.query if name in {"password", "sslpassword"}}
    return url.update_query_dict(secret).render_as_string()


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """One transaction: committed at the end, rolled back on any exception.

    Rows are selected as columns here, never as mapped objects: those load whole collections (models are selectin).
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def connection_lost(error: BaseException) -> bool:
    """Whether ``error`` says that the server went away or cannot be reached: worth another try later."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "pgcode", None) or ""
    gone = error.connection_invalidated or code.startswith(("57P", "08")) or code in ("25P03", "53300")
    return gone or (isinstance(error, OperationalError) and not code)


def first_line(error: BaseException) -> str:
    """What the driver said, without the statement that SQLAlchemy adds: for one line of a log or a sentence."""
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]


def deadlocked(error: BaseException) -> bool:
    """Whether two transactions waited for each other, and this one was ended for the other to go on."""
    return getattr(getattr(error, "orig", None), "pgcode", None) == "40P01"


def lock_timed_out(error: BaseException) -> bool:
    """Whether another session kept something locked for longer than is waited for."""
    return getattr(getattr(error, "orig", None), "pgcode", None) == "55P03"


def transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed when it is run again: lost connection, deadlock, lock timeout."""
    if connection_lost(error):
        return True
    code = getattr(getattr(error, "orig", None), "pgcode", None) or ""
    return code.startswith("40") or code in ("55P03", "57014")


def migrations_folder() -> Path:
    """Folder of the migration scripts: beside the packages in a checkout, inside ``models`` once installed."""
    package = Path(str(files("models")))
    checkout = package.parent / "alembic"
    return checkout if (checkout / "env.py").exists() else package / "migrations"


def alembic_config(url: str | None = None) -> "Config":
    """Alembic's configuration for one database, without a file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def revisions(connection: Connection) -> tuple[str | None, str]:
    """(revision of the database, or None when it is empty; revision of this program)."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None, REVISION
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none(), REVISION


def migrate(url: str, revision: str = "head") -> None:
    """Apply migrations up to ``revision``; safe when several processes do so at once (env.py takes a lock)."""
    from alembic.util import CommandError

    from alembic import command

    try:
        command.upgrade(alembic_config(url), revision)
    except CommandError as error:
        raise SchemaError(str(error)) from None


def check_schema(engine: Engine) -> None:
    """Raise SchemaError unless the database is at this program's revision."""
    with engine.connect() as connection:
        current, head = revisions(connection)
    if current != head:
        raise SchemaError(
            f"The database is at revision {current or 'none'} and this program needs {head}: "
            "run `pixtrawl migrate`."
        )


def ping(url: str) -> str:
    """PostgreSQL's version, as ``15.18``. Raises UnreachableError."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            version: Any = connection.execute(text("SHOW server_version")).scalar_one()
            return str(version).split()[0]
    except DBAPIError as error:
        reason = first_line(error)
        raise UnreachableError(f"PostgreSQL is not reachable at {masked(engine.url)}: {reason}") from None
    finally:
        engine.dispose()
