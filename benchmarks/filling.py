"""Fills a database by ``generate_series``: one large account, and a crowd of users with pending chunks.

It writes the end of a history that never ran. The rows keep every rule of the books, so that what is done on
top of them can be checked. Only for benchmarks and tests; it measures nothing.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, text

from models.candidates import pack_candidates
from models.credits import CREDITS_MAX, PERIOD
from models.outcomes import Candidate

LARGE = "large@example.invalid"
ACCEPTED, REFUSED = 100, 10
"""Candidates of an ended chunk of the large account's job with an image, and without."""
WAITING_SIZE, CROWD_SIZE = 500, 2
"""Candidates of each pending chunk, of the large account's job and of the crowd's."""
IMAGE_BYTES = 75_000
STOPPED_CHUNKS = 10


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows there are. The large account has one running job with ``chunks`` ended chunks and all of
    its ``transactions``, and ``waiting`` pending chunks. The crowd's ``jobs`` have ``pending`` chunks; beside
    them ``stopped`` jobs are paused, and as many are blocked.
    """

    chunks: int = 10_000
    transactions: int = 1_000_000
    waiting: int = 600
    messages: int = 100_000
    ended_jobs: int = 3_000
    users: int = 1_000
    jobs: int = 3_000
    pending: int = 1_000_000
    stopped: int = 1_000

    @property
    def images(self) -> int:
        """Images of the large account."""
        return self.chunks * ACCEPTED

    @property
    def failures(self) -> int:
        """Failures of the large account, a row each."""
        return self.chunks * REFUSED


def fill(engine: Engine, size: Size) -> int:
    """Write all rows in one transaction, and let PostgreSQL look at them as its autovacuum would. Returns the
    large account's job.
    """
    values = parameters(size)
    with engine.begin() as connection:
        # The rows are right: foreign keys and triggers are not asked one by one.
        connection.execute(text("SET LOCAL session_replication_role = 'replica'"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in STATEMENTS:
            connection.execute(text(statement), values)
        job_id = connection.execute(text("SELECT min(id) FROM crawl_jobs")).scalar_one()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM (ANALYZE)"))
    return int(job_id)


def parameters(size: Size) -> dict[str, Any]:
    """What the statements below name."""
    each, rest = divmod(size.transactions, size.chunks)
    price, left = divmod(ACCEPTED, each)
    assert rest == left == 0, "every chunk was paid for in equal parts"
    ended = size.images + size.failures
    return {
        "email": LARGE,
        "chunks": size.chunks,
        "accepted": ACCEPTED,
        "refused": REFUSED,
        "images": size.images,
        "failures": size.failures,
        "ended": ended,
        "bytes": IMAGE_BYTES,
        "each": each,
        "price": price,
        "credits": CREDITS_MAX // 2,
        "most": CREDITS_MAX,
        "waiting": size.waiting,
        "waiting_size": WAITING_SIZE,
        "waiting_candidates": packed(WAITING_SIZE),
        "messages": size.messages,
        "ended_jobs": size.ended_jobs,
        "users": size.users,
        "jobs": size.jobs,
        "stopped": size.stopped,
        "chunks_of_job": size.pending // size.jobs,
        "chunks_of_stopped": STOPPED_CHUNKS,
        "crowd_size": CROWD_SIZE,
        "crowd_candidates": packed(CROWD_SIZE),
    }


def packed(size: int) -> bytes:
    """The bytes of a chunk with so many candidates."""
    return pack_candidates([Candidate(n, f"http://images.test/{n}.jpg", n + 1) for n in range(size)])


LARGE_ACCOUNT = (
    """
WITH person AS (INSERT INTO profiles (email) VALUES (:email) RETURNING id),
    account AS (
        INSERT INTO credit_accounts (user_id, current_balance, monthly_limit)
        SELECT id, :credits - :images, :most FROM person),
    project AS (INSERT INTO projects (user_id, name) SELECT id, 'Large' FROM person RETURNING id)
INSERT INTO crawl_jobs (project_id, name, priority, max_images, status, source_kind, source_state,
    source_position, total_images, downloaded_images, valid_images, failed_images, failures, stored_bytes,
    wire_bytes, total_chunks, completed_chunks, progress, store_url, started_at, dispatched_at)
SELECT id, 'Large', 10, :ended + :waiting * :waiting_size, 'running', 'url_list', 'exhausted',
    :ended + :waiting * :waiting_size, :ended + :waiting * :waiting_size, :images, :images, :failures,
    jsonb_build_object('http_status', :failures), CAST(:images AS bigint) * :bytes,
    CAST(:images AS bigint) * :bytes, :chunks + :waiting, :chunks, 1, 'file:///store/jobs/1',
    now() - interval '9 days', now() FROM project
""",
    """
INSERT INTO job_chunks (job_id, chunk_index, priority, status, size, accepted, failed, attempt, checkpoint,
    task_id, image_range)
SELECT (SELECT min(id) FROM crawl_jobs), n, 10, 'completed', :accepted + :refused, :accepted, :refused, 1, 1,
    'chunk-' || n + 1 || '.1', jsonb_build_object(
        'start', n * (:accepted + :refused), 'end', (n + 1) * (:accepted + :refused))
FROM generate_series(0, :chunks - 1) AS n
""",
    """
INSERT INTO job_chunks (job_id, chunk_index, priority, size, candidates, image_range)
SELECT (SELECT min(id) FROM crawl_jobs), :chunks + n, 10, :waiting_size, :waiting_candidates,
    jsonb_build_object('start', :ended + n * :waiting_size, 'end', :ended + (n + 1) * :waiting_size)
FROM generate_series(0, :waiting - 1) AS n
""",
    """
INSERT INTO images (crawl_job_id, chunk_id, position, original_url, final_url, filename, storage_url, width,
    height, file_size, format, sha256, perceptual_hash, orientation, fetched_at)
SELECT c.job_id, c.id, place, url, url, name, 'file:///store/jobs/1/' || name, 640, 480, :bytes, 'jpeg',
    digest, hashint8extended(place, 0), 1, now()
FROM job_chunks c
CROSS JOIN LATERAL generate_series(
    c.chunk_index * (:accepted + :refused), c.chunk_index * (:accepted + :refused) + :accepted - 1) AS place
CROSS JOIN LATERAL (SELECT 'http://images.test/photographs/' || place || '.jpg' AS url,
    sha256(convert_to(CAST(place AS text), 'UTF8')) AS digest OFFSET 0) AS made
CROSS JOIN LATERAL (SELECT encode(digest, 'hex') || '.jpg' AS name) AS named
WHERE c.status = 'completed'
""",
    """
INSERT INTO failures (job_id, chunk_id, position, position_end, url, reason, http_status, detail)
SELECT c.job_id, c.id, place, place, 'http://images.test/photographs/' || place || '.jpg', 'http_status', 404,
    '404 Not Found'
FROM job_chunks c
CROSS JOIN LATERAL generate_series(c.chunk_index * (:accepted + :refused) + :accepted,
    (c.chunk_index + 1) * (:accepted + :refused) - 1) AS place
WHERE c.status = 'completed'
""",
    f"""
INSERT INTO credit_transactions (account_id, user_id, type, description, amount, balance_after, status, job_id,
    chunk_id, held, unit_price, period, created_at, settled_at)
SELECT a.id, a.user_id, 'usage', 'Job ' || c.job_id || ', chunk ' || c.id, -:price,
    :credits - :price * (c.chunk_index * :each + n), 'completed', c.job_id, c.id, :price, 1, {PERIOD}, moment,
    moment
FROM credit_accounts a CROSS JOIN job_chunks c CROSS JOIN LATERAL generate_series(1, :each) AS n
CROSS JOIN LATERAL (SELECT now() - make_interval(secs => (:images - c.chunk_index * :each - n) * 0.1) AS moment) m
WHERE c.status = 'completed'
""",
    """
INSERT INTO credit_transactions
    (account_id, user_id, type, description, amount, balance_after, status, created_at, settled_at)
SELECT id, user_id, 'bonus', 'Starting bonus', :credits, :credits, 'completed', now() - interval '99 days',
    now() - interval '99 days'
FROM credit_accounts
""",
    f"UPDATE credit_accounts SET monthly_usage = :images, usage_period = {PERIOD}",
    """
INSERT INTO usage_metrics (user_id, metric_date, images_processed, storage_used_bytes, bandwidth_used_bytes)
SELECT user_id, CAST(now() AT TIME ZONE 'utc' AS date), :images, CAST(:images AS bigint) * :bytes,
    CAST(:images AS bigint) * :bytes FROM credit_accounts
""",
    """
INSERT INTO crawl_jobs (project_id, name, status, source_kind, source_state, started_at, completed_at,
    fingerprint)
SELECT id, 'Ended ' || n, 'completed', 'url_list', 'exhausted', now() - interval '9 days',
    now() - interval '8 days', encode(sha256(convert_to(CAST(n AS text), 'UTF8')), 'hex')
FROM projects CROSS JOIN generate_series(1, :ended_jobs) AS n
""",
    """
INSERT INTO notifications (user_id, type, category, title, message, metadata, created_at)
SELECT p.id, 'warning', CASE n % 2 WHEN 0 THEN 'billing' ELSE 'crawl_job' END, 'Out of credits',
    'Job ' || n || ' has no credits left. It goes on by itself after a top-up.',
    jsonb_build_object('job_id', n, 'reason', 'out_of_credits'), now() - make_interval(secs => n * 0.01)
FROM profiles p CROSS JOIN generate_series(1, :messages) AS n
""",
    """
INSERT INTO activity_logs (user_id, action, resource_type, resource_id, metadata, timestamp)
SELECT p.id, 'crawl_job.submitted', 'crawl_job', CAST(n AS text), '{}', now() - make_interval(secs => n)
FROM profiles p CROSS JOIN generate_series(1, :messages) AS n
""",
)
"""The first rows of their tables."""

CROWD_OF_USERS = (
    "INSERT INTO profiles (email) SELECT 'user-' || n || '@example.invalid' FROM generate_series(1, :users) AS n",
    # One in ten has no credits.
    """
INSERT INTO credit_accounts (user_id, current_balance, monthly_limit)
SELECT id, CASE WHEN email LIKE '%0@example.invalid' THEN 0 ELSE :credits END, :most
FROM profiles WHERE email <> :email
""",
    """
INSERT INTO credit_transactions
    (account_id, user_id, type, description, amount, balance_after, status, settled_at)
SELECT a.id, a.user_id, 'bonus', 'Starting bonus', :credits, :credits, 'completed', now()
FROM credit_accounts a JOIN profiles p ON p.id = a.user_id WHERE a.current_balance > 0 AND p.email <> :email
""",
    """
INSERT INTO projects (user_id, name)
SELECT id, split_part(email, '@', 1) FROM profiles WHERE email <> :email ORDER BY length(email), email
""",
    """
WITH owners AS (
    SELECT p.id, row_number() OVER (ORDER BY p.id) AS number, count(*) OVER () AS total
    FROM projects p JOIN credit_accounts a ON a.user_id = p.user_id
    WHERE a.current_balance > 0 AND p.name <> 'Large'),
poor AS (
    SELECT p.id, row_number() OVER (ORDER BY p.id) AS number, count(*) OVER () AS total
    FROM projects p JOIN credit_accounts a ON a.user_id = p.user_id WHERE a.current_balance = 0),
wanted AS (
    SELECT n, 'Running' AS name, o.id AS project_id FROM generate_series(1, :jobs) AS n
        JOIN owners o ON o.number = n % o.total + 1
    UNION ALL SELECT :jobs + n, 'Paused', o.id FROM generate_series(1, :stopped) AS n
        JOIN owners o ON o.number = n % o.total + 1
    UNION ALL SELECT :jobs + :stopped + n, 'Blocked', o.id FROM generate_series(1, :stopped) AS n
        JOIN poor o ON o.number = n % o.total + 1)
INSERT INTO crawl_jobs (project_id, name, priority, max_images, status, source_kind, source_state,
    total_images, source_position, total_chunks, store_url, created_at, paused_at, blocked_reason)
SELECT project_id, name, n % 5, chunks * :crowd_size, 'pending', 'url_list', 'exhausted', chunks * :crowd_size,
    chunks * :crowd_size, chunks, 'file:///store/jobs/2', now() - make_interval(secs => n * 7 % 1700),
    CASE name WHEN 'Paused' THEN now() END, CASE name WHEN 'Blocked' THEN 'out_of_credits' END
FROM wanted CROSS JOIN LATERAL (
    SELECT CASE name WHEN 'Running' THEN :chunks_of_job ELSE :chunks_of_stopped END AS chunks) AS counted
""",
    # In the order of real steps: twenty chunks of one job, then twenty of the next.
    """
INSERT INTO job_chunks (job_id, chunk_index, priority, size, candidates, image_range)
SELECT j.id, n, j.priority, :crowd_size, :crowd_candidates,
    jsonb_build_object('start', n * :crowd_size, 'end', (n + 1) * :crowd_size)
FROM crawl_jobs j CROSS JOIN LATERAL generate_series(0, j.total_chunks - 1) AS n
WHERE j.name IN ('Running', 'Paused', 'Blocked') ORDER BY n / 20, j.id, n
""",
    # What the trigger would have done.
    "UPDATE crawl_jobs SET ready_priority = priority WHERE status IN ('pending', 'running')",
)

STATEMENTS = LARGE_ACCOUNT + CROWD_OF_USERS
