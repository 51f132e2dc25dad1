"""Rows in plain SQL, as any writer of the shared database may try them: valid ones, and what a test changes."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models import Profile
from models.database import make_engine
from tests.support.factories import create_job, create_project, create_tree

# One more row of each table: {user}'s, who has only {project} with {job}; and {account}, which is another's.
ROWS = {
    "profiles": "email = 'new@example.invalid'",
    "projects": "name = 'Owls', user_id = {user}",
    "crawl_jobs": "name = 'Owls', project_id = {project}",
    "job_chunks": "job_id = {job}, chunk_index = 1",
    "images": "crawl_job_id = {job}, original_url = 'u', filename = 'f', position = 1, sha256 = sha256('b')",
    "failures": "job_id = {job}, position = 2, position_end = 2, reason = 'dns'",
    "activity_logs": "user_id = {user}, action = 'login'",
    "credit_accounts": "user_id = {user}",
    "credit_transactions": "account_id = {account}, user_id = {user}, type = 'bonus', amount = -1, "
    "balance_after = 0",
    "notifications": "user_id = {user}, title = 't', message = 'm'",
    "notification_preferences": "user_id = {user}",
    "api_keys": "user_id = {user}, name = 'n', key_hash = 'new', key_prefix = 'p'",
    "usage_metrics": "user_id = {user}, metric_date = '2026-01-02'",
    "workers": "name = 'w', slots = 1, version = '0.1'",
    "seen_keys": "job_id = {job}, key = uuid_send(gen_random_uuid()), position = 0",
    "pages": "job_id = {job}, key = uuid_send(gen_random_uuid()), number = 1, kind = 'start', url = 'u', "
    "depth = 0, pattern = '', reason = 'dns'",
    "leadership": "scheduler = 'h/1'",
}

# What a row needs besides its status, by the rules that tie columns together.
IMPLIED = {
    ("crawl_jobs", "completed"): "completed_at = now()",
    ("crawl_jobs", "failed"): "completed_at = now()",
    ("crawl_jobs", "cancelled"): "completed_at = now()",
    ("job_chunks", "processing"): "lease_until = now(), worker = 'w'",
}


def columns(row: str) -> dict[str, str]:
    """{column: SQL} of a line of ROWS or IMPLIED."""
    return dict(pair.split(" = ") for pair in row.split(", ")) if row else {}


class Rows:
    """Tries rows beside those that exist, and undoes each at once."""

    def __init__(self, connection: Connection, ids: dict[str, Any]) -> None:
        self.connection, self.ids = connection, ids

    def insert(self, table: str, **values: Any) -> None:
        """A valid row of ``table`` with these values (SQL) instead of its own."""
        row = columns(ROWS[table].format(**self.ids)) | values
        names, expressions = ", ".join(row), ", ".join(str(value) for value in row.values())
        self.execute(f"INSERT INTO {table} ({names}) VALUES ({expressions})")

    def execute(self, statement: str) -> None:
        """One statement of SQL."""
        with self.connection.begin_nested() as savepoint:
            self.connection.execute(text(statement))
            savepoint.rollback()

    def refused_by(self, table: str, **values: Any) -> str | None:
        """Name of the constraint that refuses such a row; None when it is accepted."""
        try:
            self.insert(table, **values)
        except IntegrityError as error:
            driver: Any = error.orig
            return str(driver.diag.constraint_name)
        return None

    def again(self, table: str, names: list[str]) -> dict[str, str]:
        """These columns of a row that exists, for another row."""
        return {name: f"(SELECT {name} FROM {table} ORDER BY ctid LIMIT 1)" for name in names}


@contextmanager
def database_of_rows(url: str, administration: Engine, template: str) -> Iterator[Engine]:
    """A database for a whole test file: two users with a row in every table, a third with an empty job only."""
    name = f"rows_{uuid.uuid4().hex}"
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    engine = make_engine(make_url(url).set(database=name).render_as_string(hide_password=False))
    with Session(engine) as session:
        create_tree(session, OWNER)
        create_tree(session)
        newcomer = Profile(email=NEWCOMER)
        session.add(newcomer)
        session.flush()
        create_job(session, create_project(session, newcomer), commit=True)
    yield engine
    engine.dispose()
    with administration.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


OWNER, NEWCOMER = "owner@example.invalid", "newcomer@example.invalid"
IDS = text("""
SELECT quote_literal(p.id) AS user, r.id AS project, j.id AS job, quote_literal(a.id) AS account,
    (SELECT max(id) FROM job_chunks) AS chunk
FROM profiles p JOIN projects r ON r.user_id = p.id JOIN crawl_jobs j ON j.project_id = r.id,
    credit_accounts a JOIN profiles o ON o.id = a.user_id
WHERE p.email = :newcomer AND o.email = :owner
""")


def rows_on(connection: Connection) -> Rows:
    """Tries rows in a database of rows, within the connection's transaction."""
    ids = connection.execute(IDS, {"owner": OWNER, "newcomer": NEWCOMER}).mappings().one()
    return Rows(connection, dict(ids))
