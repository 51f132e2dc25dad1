"""Which chunks may be dispatched, and how urgent the best of a job is: ``crawl_jobs.ready_priority``.

The column is never below the priority of the job's best ready chunk, and NULL only when it has none: a trigger
raises it, whoever writes the chunk. It may be too high for a while; the claim finds that out and lowers it.
Whoever lowers it holds the job's row, and looks at the chunks only then.
"""

from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.orm import Session

READY = """c.status = 'pending' AND c.queued_at IS NULL AND c.available_at IS NULL
    AND c.candidates IS NOT NULL"""
"""A parked chunk is ready when its time has come: ``unpark_chunks`` says so in its row."""


def _ready(row: str) -> str:
    return READY.replace("c.", f"{row}.")


RAISE_READY_PRIORITY = """
CREATE FUNCTION raise_ready_priority() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The lock first, and the look at the row after it: somebody may be lowering it.
    PERFORM FROM crawl_jobs WHERE id = NEW.job_id FOR NO KEY UPDATE;
    UPDATE crawl_jobs SET ready_priority = NEW.priority
    WHERE id = NEW.job_id AND (ready_priority IS NULL OR ready_priority < NEW.priority);
    RETURN NULL;
END $$
"""
TRIGGERS = (
    f"""
CREATE TRIGGER raise_ready_priority_inserted AFTER INSERT ON job_chunks FOR EACH ROW
WHEN ({_ready("NEW")}) EXECUTE FUNCTION raise_ready_priority()
""",
    f"""
CREATE TRIGGER raise_ready_priority_updated AFTER UPDATE ON job_chunks FOR EACH ROW
WHEN ({_ready("NEW")} AND (NEW.priority > OLD.priority OR NOT ({_ready("OLD")})))
EXECUTE FUNCTION raise_ready_priority()
""",
)

LOCK = text("""
SELECT id FROM crawl_jobs WHERE id = ANY(CAST(:ids AS int[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
LOWER = text(f"""
UPDATE crawl_jobs j SET ready_priority = best.priority
FROM unnest(CAST(:ids AS int[])) AS locked (id) LEFT JOIN LATERAL (
    SELECT c.priority FROM job_chunks c WHERE c.job_id = locked.id AND {READY}
    ORDER BY c.priority DESC, c.id LIMIT 1) best ON true
WHERE j.id = locked.id AND j.ready_priority IS DISTINCT FROM best.priority
""")


def lower_ready_priorities(session: Session, job_ids: Iterable[int]) -> set[int]:
    """Look again at what these jobs have ready. Returns the jobs that others have locked: left as they are."""
    wanted = set(job_ids)
    locked = set(session.execute(LOCK, {"ids": sorted(wanted)}).scalars())
    session.execute(LOWER, {"ids": sorted(locked)})
    return wanted - locked


UNPARK = text("""
WITH due AS (
    SELECT id FROM job_chunks WHERE status = 'pending' AND available_at <= now()
    ORDER BY available_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED)
UPDATE job_chunks c SET available_at = NULL FROM due WHERE c.id = due.id
""")


def unpark_chunks(session: Session, limit: int) -> None:
    """parked → ready, for chunks whose time has come."""
    session.execute(UNPARK, {"limit": limit})
