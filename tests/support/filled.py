"""Tables of the seed with 100,000 rows each, in seconds, for tests that ask the planner."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

ROWS_OF_A_TABLE = 100_000


def profile_id(number: str | int) -> str:
    """SQL of the id of a profile by its number."""
    return f"CAST(lpad(to_hex(CAST({number} AS int)), 32, '0') AS uuid)"


USER = profile_id("n")
RARE = "n % 1000"
"""One row in a thousand has the status that a query looks for (0) and one the next (1); the others have ended."""

# A user has one row in most tables and a hundred activities; a project has a hundred jobs, and so on downwards.
FILLED = {
    "profiles": f"""(id, email, user_tier) SELECT {USER}, n || '@example.invalid',
        CASE WHEN {RARE} = 0 THEN 'ENTERPRISE' WHEN n % 20 = 0 THEN 'PRO' ELSE 'FREE' END""",
    "projects": f"(name, user_id) SELECT 'Birds', {USER}",
    "activity_logs": f"""(user_id, action, resource_type, resource_id, timestamp)
        SELECT {profile_id("1 + n / 100")}, 'submit', 'crawl_job', n, now() - n * interval '1 min'""",
    "credit_accounts": f"(id, user_id) SELECT {USER}, {USER}",
    "api_keys": f"(id, user_id, name, key_hash, key_prefix) SELECT {USER}, {USER}, 'key', n, 'p'",
    "notifications": f"(user_id, title, message) SELECT {USER}, 'Done', 'One image'",
    "usage_metrics": f"(id, user_id, metric_date) SELECT {USER}, {USER}, '2026-01-01'",
    "crawl_jobs": f"""(project_id, name, status, completed_at) SELECT 1 + n / 100, 'birds ' || n,
        CASE {RARE} WHEN 0 THEN 'running' WHEN 1 THEN 'pending' ELSE 'completed' END,
        CASE WHEN {RARE} > 1 THEN now() END""",
    "images": """(crawl_job_id, original_url, filename, position, sha256)
        SELECT 1 + n / 100, 'u', 'f', n % 100, sha256(CAST(CAST(n AS text) AS bytea))""",
    "job_chunks": f"""(job_id, chunk_index, status, lease_until, worker) SELECT 1 + n / 100, n % 100,
        CASE {RARE} WHEN 0 THEN 'processing' WHEN 1 THEN 'pending' ELSE 'completed' END,
        CASE {RARE} WHEN 0 THEN now() END, CASE {RARE} WHEN 0 THEN 'w' END""",
}

INDEXES = text("""
SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index i
WHERE indrelid = CAST(:table AS regclass)
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
""")


def fill(connection: Connection, *tables: str) -> None:
    """Give each table its rows, within the caller's transaction, and let the planner know them.

    Foreign keys are not asked and the indexes are built behind the rows, by their own definitions: that is
    what makes it fast.
    """
    connection.execute(text("SET LOCAL session_replication_role = replica"))
    for table in tables:
        with without_indexes(connection, table):
            rows = f"INSERT INTO {table} {FILLED[table]} FROM generate_series(1, {ROWS_OF_A_TABLE}) AS n"
            connection.execute(text(rows))
        connection.execute(text(f"ANALYZE {table}"))
    connection.execute(text("SET LOCAL session_replication_role = origin"))


@contextmanager
def without_indexes(connection: Connection, table: str) -> Iterator[None]:
    """Drop a table's indexes that no constraint needs, and build them again afterwards."""
    indexes = connection.execute(INDEXES, {"table": table}).all()
    for name, _definition in indexes:
        connection.execute(text(f"DROP INDEX {name}"))
    yield
    for _name, definition in indexes:
        connection.execute(text(definition))


INDEX_ON = text("""
SELECT indexrelid::regclass::text FROM pg_index i
WHERE indrelid = CAST(:table AS regclass) AND indpred IS NULL AND indexprs IS NULL AND indisvalid
    AND ARRAY(SELECT attname::text FROM unnest(indkey::int2[]) WITH ORDINALITY AS k (number, at)
        JOIN pg_attribute a ON (a.attrelid, a.attnum) = (i.indrelid, k.number) ORDER BY at)
    = CAST(:columns AS text[])
""")


def index_on(connection: Connection, table: str, columns: list[str]) -> str | None:
    """Name of the index over all rows of ``table`` on exactly these columns in this order."""
    parameters = {"table": table, "columns": columns}
    return connection.execute(INDEX_ON, parameters).scalar_one_or_none()


OTHERS = text("""
SELECT CASE WHEN c.conname IS NULL THEN 'DROP INDEX ' || indexrelid::regclass
    ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', indrelid::regclass, c.conname) END
FROM pg_index i LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid AND c.conrelid = i.indrelid
WHERE indrelid = CAST(:table AS regclass) AND NOT indisprimary AND indexrelid <> CAST(:index AS regclass)
""")


@contextmanager
def only_index(connection: Connection, table: str, index: str) -> Iterator[None]:
    """Without every other index and unique key of the table but its primary key, until the block ends."""
    with connection.begin_nested() as savepoint:
        for statement in connection.execute(OTHERS, {"table": table, "index": index}).scalars().all():
            connection.execute(text(statement))
        yield
        savepoint.rollback()
