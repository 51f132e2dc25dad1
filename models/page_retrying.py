"""The arrow of pages that are read again: failed → pending, and the source that had ended goes on with them.

Takes a Session and never commits.
"""

from collections import Counter

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.reopening import lock_job, reopen_job
from models.retrying import Selection
from models.splitting import AT_REST

AGAIN = text("""
UPDATE pages SET state = 'pending', reason = NULL, http_status = NULL, detail = NULL, evidence = NULL,
    attempts = 0, refusals = 0, losses = 0, ended_at = NULL
WHERE job_id = :job_id AND state = 'failed' AND (reason = ANY(CAST(:reasons AS text[]))
    OR (reason = 'http_status' AND http_status = ANY(CAST(:statuses AS int[])))
    OR (:unreachable AND reason = 'robots' AND evidence->>'unreachable' IS NOT NULL))
RETURNING number
""")
WAITING = text("SELECT count(*) FROM pages WHERE job_id = :job_id AND state = 'pending'")
"""Of a source that has ended these are what its cancelling, or its own error, left."""
ENDED = text("""
SELECT FROM crawl_jobs WHERE id = :job_id AND source_kind = 'pages' AND source_state = 'exhausted'
""")
GO_ON = text(f"""
UPDATE crawl_jobs SET source_state = 'splitting', source_detail = NULL, source_step = source_step + 1, {AT_REST}
WHERE id = :job_id
""")


def retry_pages(session: Session, job_id: int, selection: Selection) -> int:
    """failed → pending for the pages of a job that match, the source exhausted → splitting, and the job → running.

    Pages that were not read when the source was cut off count, too, when what was cancelled comes back. Returns how
    many are read again: none while the source has not ended, and none of a source that was left because enough was
    accepted. Raises what lock_job raises.
    """
    if selection.chunk_ids is not None:
        return 0
    lock_job(session, job_id)
    parameters = {"job_id": job_id}
    if session.execute(ENDED, parameters).first() is None:
        return 0
    waiting = session.execute(WAITING, parameters).scalar_one() if selection.rewinds else 0
    again = session.execute(AGAIN, parameters | selection.parameters).all()
    pages = int(waiting) + len(again)
    if pages:
        session.execute(GO_ON, parameters)
        reopen_job(session, job_id, Counter())
    return pages
