"""How urgent a job is, changed while its chunks wait: the job's row at once, those of its chunks in batches.

``crawl_jobs.reprioritized_at`` is set while they may differ; the claim goes by the job then. Each function takes a
Session and never commits.
"""

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.job_lifecycle import log_activity
from models.readiness import READY

CHUNKS_MAX = 500

CHANGE = text("""
UPDATE crawl_jobs SET priority = :priority,
    reprioritized_at = CASE WHEN source_kind IS NOT NULL THEN clock_timestamp() END
WHERE id = :job_id AND status IN ('pending', 'running') AND cancelled_at IS NULL RETURNING id
""")


def change_priority(session: Session, job_id: int, priority: int) -> bool:
    """waiting or running → the same, but as urgent as ``priority``: what is dispatched from now on goes by it.

    Messages that were sent stay where they are. Chunks of another service's job are left to that service.
    """
    if session.execute(CHANGE, {"job_id": job_id, "priority": priority}).first() is None:
        return False
    log_activity(session, job_id, "crawl_job.reprioritized", {"priority": priority})
    return True


BEHIND = text("""
SELECT id, priority, reprioritized_at FROM crawl_jobs
WHERE reprioritized_at IS NOT NULL AND status IN ('pending', 'running') AND cancelled_at IS NULL
ORDER BY reprioritized_at LIMIT 1
""")
IN_FLIGHT = "(c.status = 'processing' OR (c.status = 'pending' AND c.queued_at IS NOT NULL))"
DIFFERING = " UNION ALL ".join(
    f"(SELECT c.id FROM job_chunks c WHERE c.job_id = :job_id AND {condition} LIMIT :limit)"
    for condition in (
        f"{READY} AND c.priority < :priority",
        f"{READY} AND c.priority > :priority",
        f"{IN_FLIGHT} AND c.priority <> :priority",
        "c.status = 'pending' AND c.available_at IS NOT NULL AND c.priority <> :priority",
    )
)
"""Through the indexes of what is ready, live and parked: a job may have a million chunks."""
BRING_ALONG = text(f"""
WITH locked AS (
    SELECT c.id FROM job_chunks c WHERE c.id = ANY(ARRAY(SELECT id FROM ({DIFFERING}) AS differing LIMIT :limit))
        AND c.status IN ('pending', 'processing')
    ORDER BY c.id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE job_chunks c SET priority = :priority FROM locked WHERE c.id = locked.id RETURNING c.id
""")
BROUGHT_ALONG = text(f"""
UPDATE crawl_jobs SET reprioritized_at = NULL
WHERE id = :job_id AND reprioritized_at = :at AND NOT EXISTS ({DIFFERING})
""")


def bring_chunks_along(session: Session, limit: int = CHUNKS_MAX) -> int:
    """A batch of chunks gets the priority that their job was given; how many. Those that have ended keep theirs.

    A chunk that another process has locked is passed over: its job is looked at again.
    """
    job = session.execute(BEHIND).one_or_none()
    if job is None:
        return 0
    parameters = {"job_id": job.id, "priority": job.priority, "at": job.reprioritized_at, "limit": limit}
    brought = len(session.execute(BRING_ALONG, parameters).all())
    if brought < limit:
        session.execute(BROUGHT_ALONG, parameters)
    return brought
