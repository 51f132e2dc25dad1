"""How one statement of a migration runs: in a transaction of its own, holding nobody back while it waits.

Offline (``--sql``) it is printed instead. It knows no table and no statement: models/ddl.py does.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

from alembic import context, op

LOCK_TIMEOUT_SECONDS = 2
"""Whoever comes after a statement that waits for a table lock waits behind it: so it gives up soon, before the
server's deadlock check (1 s by default) finds a victim in somebody who came later."""

PATIENCE_SECONDS = 120
"""For how long a step is tried again."""

QUIET_SECONDS = 3600
"""For how long a step waits that holds nobody back, as an index build does for the transactions of others."""

OLD_SECONDS = 60

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 5.0
TRY_AGAIN = {"55P03": "lock_not_available", "40P01": "deadlock_detected"}
CANCELLED = "57014"

KEPT = "What was done so far is kept: run this again, and it goes on from here."

BROKEN = (
    "Rows of {} break a rule that this revision adds, and what was done so far is kept: repair them, then run it "
    "again."
)
HOLDERS = sa.text("""
SELECT format('process %s%s, in a transaction for %s s', pid, ' (' || nullif(application_name, '') || ')',
    extract(epoch FROM clock_timestamp() - xact_start)::int)
FROM pg_stat_activity LEFT JOIN (
    SELECT DISTINCT pid, true AS locks FROM pg_locks WHERE granted AND relation = to_regclass(CAST(:name AS text))
) AS lock USING (pid)
WHERE pid <> pg_backend_pid() AND datname = current_database() AND xact_start IS NOT NULL
    AND (locks OR backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
    AND xact_start < clock_timestamp() - make_interval(secs => :age)
ORDER BY locks NULLS LAST, xact_start LIMIT 3""")

log = logging.getLogger("pixtrawl.migrations")


def empty_database() -> bool:
    """Whether a script of SQL is printed that begins with an empty database: there is nothing to wait for."""
    return op.get_context().as_sql and context.get_starting_revision_argument() in {None, "base"}


def change(tables: Sequence[str], action: Callable[[], object]) -> None:
    """Run ``action`` in one transaction; it locks out readers or writers of ``tables``, for a moment.

    First it waits, while everybody goes on, for VACUUM and its like (an automatic one gives way after 1 s);
    then no longer than LOCK_TIMEOUT_SECONDS for readers and writers.
    """
    if empty_database():
        action()
        return
    with _autocommit():
        if op.get_context().as_sql:
            _transaction(tables, action)
        else:
            _insist(tables[0] if tables else None, lambda: _transaction(tables, action))


def scan(table: str | None, action: Callable[[], object], *, quiet: bool = True) -> None:
    """Run ``action`` in autocommit; it reads a table for long and holds back nobody who reads or writes it.

    One that is not ``quiet`` has locked rows of others when it waits, and waits no longer than a change.
    """
    if empty_database():
        action()
        return
    with _autocommit():
        op.execute(f"SET lock_timeout = '{QUIET_SECONDS if quiet else LOCK_TIMEOUT_SECONDS}s'")
        if op.get_context().as_sql:
            action()
            return
        if others := _holders(table, older_than=OLD_SECONDS):
            log.warning("This may wait for older transactions%s.", others)
        _insist(table, action)


def refuse(sentence: str, found: str, table: str | None = None) -> None:
    """Stop when the query ``found`` has lines of text, and list them. It changes nothing."""
    if empty_database():
        return
    if op.get_context().as_sql:
        quoted = sentence.replace("'", "''")
        asked = f"""DO $$
DECLARE
    lines text := (SELECT string_agg(line, chr(10)) FROM ({found}) AS found);
BEGIN
    IF lines IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = '{quoted}' || chr(10) || lines;
    END IF;
END $$"""
        scan(table, lambda: op.execute(asked))
        return
    listed: list[str] = []
    scan(table, lambda: listed.extend(op.get_bind().execute(sa.text(found)).scalars()))
    if listed:
        raise CommandError("\n  ".join([sentence, *listed]))


@contextmanager
def _autocommit() -> Iterator[None]:
    try:
        with op.get_context().autocommit_block():
            yield
    except PendingRollbackError:
        # Whatever the driver said first: Alembic cannot leave its block on a session that is gone.
        raise CommandError(f"The connection to PostgreSQL was lost. {KEPT}") from None


def _transaction(tables: Sequence[str], action: Callable[[], object]) -> None:
    op.execute("BEGIN")
    try:
        op.execute(f"SET LOCAL lock_timeout = '{QUIET_SECONDS}s'")
        for table in tables:
            op.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
        op.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
        action()
    except DBAPIError:
        with suppress(DBAPIError):
            op.execute("ROLLBACK")
        raise
    op.execute("COMMIT")


def _insist(table: str | None, action: Callable[[], object]) -> None:
    """Try again, with growing pauses in which everybody else goes on, until the lock is had or time is up."""
    name = f"the table {table}" if table else "a table"
    began = time.monotonic()
    pause = PAUSE_SECONDS
    while True:
        try:
            action()
        except IntegrityError as error:
            raise CommandError(f"{BROKEN.format(name)}\n  {str(error.orig).strip()}") from None
        except DBAPIError as error:
            code = getattr(error.orig, "pgcode", None)
            if code == CANCELLED:
                raise CommandError(f"Cancelled. {KEPT}") from None
            if code not in TRY_AGAIN:
                raise
        else:
            return
        if time.monotonic() + pause > began + PATIENCE_SECONDS:
            waited = time.monotonic() - began
            raise CommandError(f"Others kept {name} locked for {waited:.0f} seconds{_holders(table)}. {KEPT}")
        if pause == PAUSE_SECONDS:
            log.warning("Others have locked %s%s: trying again.", name, _holders(table))
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


def _holders(table: str | None, older_than: float = 0) -> str:
    """Who may stand in the way, as a clause: the oldest transactions with a lock on the table or a snapshot."""
    holders = op.get_bind().execute(HOLDERS, {"name": table, "age": older_than}).scalars().all()
    return f" ({'; '.join(holders)})" if holders else ""
