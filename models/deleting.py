"""Deleting one job: what its deletion begins and ends with. Between the two, closing.py's statements delete.

They take a Session and never commit.
"""

import json

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.closing import ClosingJob, delete_job
from models.job_lifecycle import cancel_job

BEGIN = text("""
UPDATE crawl_jobs SET deleting_at = coalesce(deleting_at, now()) WHERE id = :job_id
RETURNING id, store_url, source->>'object'
""")


def begin_deletion(session: Session, job_id: int) -> ClosingJob | None:
    """any status → being deleted, for good: cancelled if it goes on, never reopened. None: there is no such job."""
    cancel_job(session, job_id)
    row = session.execute(BEGIN, {"job_id": job_id}).one_or_none()
    return None if row is None else ClosingJob(*row)


CHARGED = text("""
SELECT coalesce(-sum(amount), 0) FROM credit_transactions
WHERE job_id = :job_id AND type = 'usage' AND status = 'completed'
""")


def charged_credits(session: Session, job_id: int) -> int:
    """Credits that the images of a job have cost. They stay charged, and in the ledger, without the job."""
    return int(session.execute(CHARGED, {"job_id": job_id}).scalar_one())


OWNER = text("""
SELECT p.user_id, j.name FROM crawl_jobs j JOIN projects p ON p.id = j.project_id
WHERE j.id = :job_id FOR UPDATE OF j
""")
LOG = text("""
INSERT INTO activity_logs (user_id, action, resource_type, resource_id, metadata)
VALUES (:user_id, 'crawl_job.deleted', 'crawl_job', CAST(CAST(:job_id AS int) AS text), CAST(:details AS jsonb))
""")


def finish_deletion(session: Session, job_id: int) -> bool:
    """being deleted → gone, with a line in its owner's activity; False when something came to it meanwhile."""
    owner = session.execute(OWNER, {"job_id": job_id}).one_or_none()
    if owner is None:
        return True
    if not delete_job(session, job_id):
        return False
    details = json.dumps({"name": owner.name, "charged": charged_credits(session, job_id)})
    session.execute(LOG, {"user_id": owner.user_id, "job_id": job_id, "details": details})
    return True
