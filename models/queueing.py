"""The queue in the database: which chunk runs next, and the arrows into the queue.

Each takes a Session and never commits; a message is sent only once its transaction is committed. Chunks that
another process holds are skipped, never waited for.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.readiness import READY, lower_ready_priorities, unpark_chunks
from models.workers import LIVE as LIVE_WORKERS
from models.workers import LIVE_SECONDS

UNPARKED_MAX = 100
LIVE = """((c.status = 'processing' AND c.lease_until < 'infinity')
    OR (c.status = 'pending' AND c.queued_at IS NOT NULL))"""
"""A lease without end is that of another service's worker."""
RUNNABLE = """j.status IN ('pending', 'running') AND j.source_kind IS NOT NULL AND j.blocked_reason IS NULL
    AND j.paused_at IS NULL AND j.cancelled_at IS NULL"""
"""A job without a source was made by another service and is left alone."""


@dataclass(frozen=True, slots=True)
class ClaimedChunk:
    """A ready chunk, locked by this transaction; ``unresolved`` candidates have no outcome yet."""

    id: int
    job_id: int
    user_id: uuid.UUID
    account_id: uuid.UUID | None
    unresolved: int
    unit_price: int
    held: bool


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent through Celery once the transaction is committed. ``priority`` is 0 to 10, 10 most urgent."""

    chunk_id: int
    job_id: int
    attempt: int
    priority: int


CLAIM = text(f"""
WITH live AS (
    SELECT p.user_id, count(*) AS chunks
    FROM job_chunks c JOIN crawl_jobs j ON j.id = c.job_id JOIN projects p ON p.id = j.project_id
    WHERE {LIVE} GROUP BY p.user_id),
heads AS ( -- Every runnable job by the priority that its best chunk has at most; no chunk is looked at.
    SELECT j.id, j.created_at, p.user_id, coalesce(live.chunks, 0) AS chunks,
        CAST(floor(date_part('epoch', now() - coalesce(j.dispatched_at, j.created_at)) / :ageing_seconds) AS int)
            AS age, j.reprioritized_at IS NOT NULL AS reprioritized,
        CASE WHEN j.reprioritized_at IS NULL THEN j.ready_priority ELSE j.priority END AS priority
    FROM crawl_jobs j JOIN projects p ON p.id = j.project_id LEFT JOIN live ON live.user_id = p.user_id
    WHERE {RUNNABLE} AND j.ready_priority IS NOT NULL AND j.id <> ALL(CAST(:passed AS int[]))),
urgent AS (
    SELECT *, least(10, priority + age) AS urgency, chunks + row_number() OVER (
        PARTITION BY user_id ORDER BY least(10, priority + age) DESC, created_at, id) AS turn FROM heads),
jobs AS MATERIALIZED (SELECT * FROM urgent ORDER BY urgency DESC, turn, created_at, id LIMIT :limit),
ranked AS MATERIALIZED (
    SELECT c.id, c.job_id, c.priority, least(10, c.priority + j.age) AS urgency, j.created_at,
        j.chunks + row_number() OVER (
            PARTITION BY j.user_id ORDER BY least(10, c.priority + j.age) DESC, j.created_at, c.id) AS turn
    FROM jobs j CROSS JOIN LATERAL (
        SELECT c.id, c.job_id, CASE WHEN j.reprioritized THEN j.priority ELSE c.priority END AS priority
        FROM job_chunks c
        WHERE c.job_id = j.id AND {READY} ORDER BY c.priority DESC, c.id LIMIT :limit) c),
stale AS MATERIALIZED (
    SELECT ARRAY(SELECT j.id FROM jobs j WHERE NOT EXISTS (
        SELECT FROM ranked WHERE ranked.job_id = j.id AND ranked.priority = j.priority)) AS job_ids),
picked AS MATERIALIZED (
    SELECT id, row_number() OVER (ORDER BY urgency DESC, turn, created_at, id) AS place
    FROM ranked ORDER BY urgency DESC, turn, created_at, id LIMIT :limit),
locked AS (
    SELECT c.id, c.job_id, c.size - c.accepted - c.failed AS unresolved FROM job_chunks c
    WHERE c.id = ANY(ARRAY(SELECT id FROM picked)) AND {READY} FOR UPDATE SKIP LOCKED),
claimed AS (
    SELECT l.id, l.job_id, p.user_id, a.id AS account_id, l.unresolved, j.unit_price,
        EXISTS (SELECT FROM credit_transactions t
            WHERE t.chunk_id = l.id AND t.type = 'usage' AND t.status = 'pending') AS held, picked.place
    FROM locked l JOIN picked ON picked.id = l.id JOIN crawl_jobs j ON j.id = l.job_id
        JOIN projects p ON p.id = j.project_id LEFT JOIN credit_accounts a ON a.user_id = p.user_id)
SELECT claimed.id, job_id, user_id, account_id, unresolved, unit_price, held, stale.job_ids AS stale
FROM stale LEFT JOIN claimed ON stale.job_ids = '{{}}'
ORDER BY place
""")
LOOKS_MAX = 10


def claim_chunks(session: Session, limit: int, *, ageing_seconds: float = 600) -> list[ClaimedChunk]:
    """Lock up to ``limit`` ready chunks in the order in which they should run.

    By priority (raised by one for each ``ageing_seconds`` in which nothing of the job was dispatched), then
    fairly between users by the chunks that they have in flight, then by age. A job whose priority was changed
    speaks for its chunks until they have been brought along.

    Jobs are ranked by what they have ready at most. The order is right once that is exact for the first
    ``limit`` of them, for a job further down can only fall; until then they are looked at again.
    """
    unpark_chunks(session, UNPARKED_MAX)
    passed: set[int] = set()
    for _ in range(LOOKS_MAX):
        parameters = {"limit": limit, "ageing_seconds": ageing_seconds, "passed": sorted(passed)}
        rows = session.execute(CLAIM, parameters).all()
        stale = rows[0].stale
        if not stale:
            return [ClaimedChunk(*row[:-1]) for row in rows if row.id is not None]
        passed |= lower_ready_priorities(session, stale)
    return []


LOCK_JOBS = text(f"""
SELECT j.id FROM crawl_jobs j WHERE j.id = ANY(CAST(:job_ids AS int[])) AND {RUNNABLE}
ORDER BY j.id FOR NO KEY UPDATE
""")


def lock_jobs(session: Session, chunks: Sequence[ClaimedChunk]) -> list[ClaimedChunk]:
    """Lock the jobs of claimed chunks, in order of id; the chunks whose job still runs, now that nobody else can
    stop it.
    """
    job_ids = sorted({chunk.job_id for chunk in chunks})
    running = set(session.execute(LOCK_JOBS, {"job_ids": job_ids}).scalars())
    return [chunk for chunk in chunks if chunk.job_id in running]


QUEUE = text(f"""
WITH queued AS (
    UPDATE job_chunks c SET attempt = c.attempt + 1, queued_at = now(), available_at = NULL,
        task_id = 'chunk-' || c.id || '.' || c.attempt + 1,
        priority = CASE WHEN j.reprioritized_at IS NULL THEN c.priority ELSE j.priority END
    FROM crawl_jobs j
    WHERE c.id = ANY(CAST(:ids AS int[])) AND j.id = c.job_id AND c.status = 'pending' AND c.queued_at IS NULL
    RETURNING c.id, c.job_id, c.attempt, c.priority),
dispatched AS ( -- One version of the job's row. What is queued here still looks ready to this statement.
    UPDATE crawl_jobs j SET dispatched_at = now(), ready_priority = (
        SELECT c.priority FROM job_chunks c
        WHERE c.job_id = j.id AND {READY} AND c.id NOT IN (SELECT id FROM queued)
        ORDER BY c.priority DESC, c.id LIMIT 1)
    WHERE j.id IN (SELECT job_id FROM queued))
SELECT id, job_id, attempt, priority FROM queued
""")


def queue_chunks(session: Session, ids: Sequence[int]) -> list[Message]:
    """pending → queued, attempt + 1, for claimed chunks that have a hold and whose job is locked, which says from
    now on what it has left and when something of it was dispatched; messages in the order of ``ids``.
    """
    messages = {row.id: Message(*row) for row in session.execute(QUEUE, {"ids": list(ids)})}
    return [messages[chunk_id] for chunk_id in ids if chunk_id in messages]


ROOM = text(f"""
SELECT :chunks_per_slot * w.slots + w.aside - (SELECT count(*) FROM job_chunks c WHERE {LIVE})
FROM ({LIVE_WORKERS}) w
""")


def room_in_flight(session: Session, chunks_per_slot: int) -> int:
    """How many chunks more may be queued or processing, with so many for each slot of a live worker, and those
    that go on aside besides; negative when there are too many.
    """
    parameters = {"chunks_per_slot": chunks_per_slot, "seconds": LIVE_SECONDS}
    return int(session.execute(ROOM, parameters).scalar_one())


QUEUED = text("SELECT count(*) FROM job_chunks WHERE status = 'pending' AND queued_at IS NOT NULL")


def queued_chunks(session: Session) -> int:
    """Chunks that wait for a worker to take their message."""
    return int(session.execute(QUEUED).scalar_one())


OLDEST_QUEUED = text("""
SELECT coalesce(CAST(date_part('epoch', now() - min(queued_at)) AS float), 0) FROM job_chunks
WHERE status = 'pending' AND queued_at IS NOT NULL
""")


def oldest_queued_seconds(session: Session) -> float:
    """How long ago the oldest message was sent that no worker has taken; 0 if there is none."""
    return float(session.execute(OLDEST_QUEUED).scalar_one())


PUBLISH_AGAIN = text("""
WITH lost AS (
    SELECT id FROM job_chunks WHERE status = 'pending' AND queued_at < now() - make_interval(secs => :seconds)
    ORDER BY queued_at LIMIT :limit FOR UPDATE SKIP LOCKED)
UPDATE job_chunks c SET queued_at = now() FROM lost WHERE c.id = lost.id
RETURNING c.id, c.job_id, c.attempt, c.priority
""")


def publish_again(session: Session, queued_seconds: float, limit: int = 100) -> list[Message]:
    """queued → queued: chunks whose message seems lost after ``queued_seconds``; the same attempt again."""
    rows = session.execute(PUBLISH_AGAIN, {"seconds": queued_seconds, "limit": limit})
    return [Message(*row) for row in rows]
