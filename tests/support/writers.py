"""Writers that use the tables without a pause, as other services do, and the longest that a write has taken."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg2
from sqlalchemy import make_url

JOBS = 1000
USER = "'00000000-0000-0000-0000-000000000001'"

FILLED = f"""
INSERT INTO profiles (id, email) VALUES ({USER}, 'a@example.invalid');
INSERT INTO projects (name, user_id) VALUES ('Birds', {USER});
INSERT INTO crawl_jobs (project_id, name) SELECT 1, 'Job ' || n FROM generate_series(1, {JOBS}) n;
INSERT INTO credit_accounts (id, user_id) VALUES ({USER}, {USER});
INSERT INTO images (crawl_job_id, original_url, filename)
    SELECT 1 + n % {JOBS}, 'https://example.invalid/' || n, n || '.jpg' FROM generate_series(1, {{rows}}) n;
INSERT INTO job_chunks (job_id, chunk_index) SELECT 1 + n % {JOBS}, n FROM generate_series(1, {{rows}}) n;
INSERT INTO credit_transactions (account_id, user_id, type, amount, balance_after, status)
    SELECT {USER}, {USER}, 'usage', -1, 0, 'completed'
    FROM generate_series(1, {{rows}}) n;
"""
"""Rows at revision 002."""

# One list a writer: statements that are right at every revision from 002 on. %(n)s grows, %(job)s is a job.
WRITES = {
    "images": (
        "INSERT INTO images (crawl_job_id, original_url, filename) VALUES (%(job)s, 'u', 'f')",
        "UPDATE images SET width = %(n)s WHERE id = %(n)s",
    ),
    "job_chunks": (
        "INSERT INTO job_chunks (job_id, chunk_index) VALUES (%(job)s, -%(n)s)",
        "UPDATE job_chunks SET retry_count = retry_count + 1 WHERE id = %(n)s",
        "UPDATE crawl_jobs SET total_chunks = total_chunks + 1 WHERE id = %(job)s",
    ),
    "credit_transactions": (
        f"""INSERT INTO credit_transactions (id, account_id, user_id, type, amount, balance_after, status)
            VALUES (md5(%(n)s::text)::uuid, {USER}, {USER}, 'usage', -1, 0, 'pending')""",
        "UPDATE credit_transactions SET description = 'again' WHERE id = md5(%(n)s::text)::uuid",
        f"UPDATE credit_accounts SET monthly_usage = monthly_usage + 1 WHERE id = {USER}",
    ),
}


@dataclass
class Waits:
    """What the writers met with: seconds of the longest write of each, number of writes, errors."""

    longest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WRITES, 0.0))
    counted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WRITES, 0))
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = (f"{name} {self.longest[name]:.3f} s of {self.counted[name]}" for name in WRITES)
        return f"longest write: {', '.join(parts)}"


@contextmanager
def writers(url: str) -> Iterator[Waits]:
    """Keep writing while the context is open. An error ends the writer that has it and is in the result."""
    waits = Waits()
    stop = threading.Event()
    threads = [threading.Thread(target=_write, args=(url, name, waits, stop)) for name in WRITES]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _write(url: str, name: str, waits: Waits, stop: threading.Event) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(plain)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for n in itertools.count(1):
                for statement in WRITES[name]:
                    began = time.monotonic()
                    cursor.execute(statement, {"n": n, "job": 1 + n % JOBS})
                    waits.longest[name] = max(waits.longest[name], time.monotonic() - began)
                    waits.counted[name] += 1
                if stop.wait(0.002):
                    return
    except psycopg2.Error as error:
        waits.errors.append(f"{name}: {error}")
    finally:
        connection.close()
