"""The arrows of a source that asks the web: keywords, pages. A worker makes its steps, one at a time for each job.

PostgreSQL says whose step it is, as for a chunk: a message is a doorbell, and the fence is (step, worker). Each
takes a Session and never commits. The end of a step is ``advance_source`` in splitting.py.
"""

from dataclasses import dataclass

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from models.recording import storable
from models.splitting import (
    AT_REST,
    IS_DISCOVERED,
    SPLITTABLE_COLUMNS,
    UNENDED_SOURCE,
    WANTED_NOW,
    WANTS_MORE,
    SplittableJob,
    read_splittable,
)

ASKED_SECONDS = 30
"""A message that nobody has heard for so long is sent again."""


@dataclass(frozen=True, slots=True)
class StepMessage:
    """What is sent through Celery once the transaction is committed."""

    job_id: int
    step: int
    priority: int


@dataclass(frozen=True, slots=True)
class StepFence:
    """What a worker must still own when it writes: this step of this job."""

    job_id: int
    step: int
    worker: str


@dataclass(frozen=True, slots=True)
class StartedStep:
    """A step that this worker now owns; ``attempts`` of it were started so far, this one included, and the last one
    ``waited_for`` something.
    """

    job: SplittableJob
    fence: StepFence
    attempts: int
    waited_for: str | None


AT_LEISURE = """(j.source_lease_until IS NULL OR j.source_lease_until < now())
    AND (j.source_available_at IS NULL OR j.source_available_at <= now())"""
ASK = text(f"""
WITH silent AS (
    SELECT j.id FROM crawl_jobs j
    WHERE {WANTS_MORE} AND {IS_DISCOVERED} AND {AT_LEISURE} AND j.blocked_reason IS NULL
        AND (j.source_asked_at IS NULL OR j.source_asked_at < now() - make_interval(secs => :seconds))
    ORDER BY j.source_asked_at NULLS FIRST, j.priority DESC, j.id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED)
UPDATE crawl_jobs j SET source_asked_at = now() FROM silent WHERE j.id = silent.id
RETURNING j.id, j.source_step, j.priority
""")


def ask_for_steps(session: Session, limit: int = 50, seconds: float = ASKED_SECONDS) -> list[StepMessage]:
    """source → the same, asked for: its next step is wanted, nobody makes it, it need not wait, and no message
    was sent for ``seconds``. No quota is used up for a job that cannot be paid for: one that is blocked.
    """
    rows = session.execute(ASK, {"limit": limit, "seconds": seconds})
    return [StepMessage(*row) for row in rows]


START = text(f"""
UPDATE crawl_jobs j SET source_worker = :worker, source_attempts = j.source_attempts + 1,
    source_lease_until = now() + make_interval(secs => :lease_seconds),
    source_asked_at = NULL, source_available_at = NULL, source_wait = NULL
FROM (SELECT source_wait FROM crawl_jobs WHERE id = :job_id) before
WHERE j.id = :job_id AND j.source_step = :step AND {WANTS_MORE} AND {IS_DISCOVERED}
    AND ({AT_LEISURE} OR j.source_worker = :worker)
RETURNING {SPLITTABLE_COLUMNS}, {WANTED_NOW} AS wanted, j.source_attempts, before.source_wait AS waited_for
""")
"""A process makes one step at a time: what it seems to have already, it took by a COMMIT without an answer."""


def start_step(
    session: Session, job_id: int, step: int, worker: str, lease_seconds: float
) -> StartedStep | None:
    """source at step k, free → with a worker, if the step is still wanted, and need not wait (any more)."""
    parameters = {"job_id": job_id, "step": step, "worker": worker, "lease_seconds": lease_seconds}
    row = session.execute(START, parameters).one_or_none()
    if row is None:
        return None
    fence = StepFence(job_id, step, worker)
    return StartedStep(read_splittable(row), fence, row.source_attempts, row.waited_for)


MINE = "j.id = :job_id AND j.source_step = :step AND j.source_worker = :worker"
LOOK = text(f"""
SELECT {UNENDED_SOURCE} AND j.paused_at IS NULL AS wanted, j.source_lease_until NOT BETWEEN
    now() + make_interval(secs => 0.9 * :lease_seconds) AND now() + make_interval(secs => :lease_seconds) AS due
FROM crawl_jobs j WHERE {MINE}
""")
RENEW = text(f"""
UPDATE crawl_jobs j SET source_lease_until = now() + make_interval(secs => :lease_seconds)
FROM (SELECT j.id FROM crawl_jobs j WHERE {MINE} FOR NO KEY UPDATE SKIP LOCKED) mine WHERE j.id = mine.id
""")


def renew_step(session: Session, fence: StepFence, lease_seconds: float) -> bool:
    """source with a worker → the same with a later lease, once a tenth of it is over. Returns whether the step is
    this worker's and its job neither paused nor cancelled. Waits for nobody.
    """
    parameters = _guard(fence) | {"lease_seconds": lease_seconds}
    row = session.execute(LOOK, parameters).one_or_none()
    if row is None or not row.wanted:
        return False
    if row.due:
        session.execute(RENEW, parameters)
    return True


POSTPONE = text(f"""
UPDATE crawl_jobs j SET source_worker = NULL, source_lease_until = NULL, source_asked_at = NULL,
    source_available_at = now() + make_interval(secs => :seconds), source_wait = :why,
    source_attempts = j.source_attempts - CASE WHEN :counts THEN 0 ELSE 1 END
WHERE {MINE} RETURNING j.id
""")


def postpone_source(
    session: Session, fence: StepFence, seconds: float, why: str, *, counts: bool = True
) -> bool:
    """source with a worker → free at the same step, from ``seconds`` on: whom it asks is to be left alone. The
    attempt ``counts`` unless the wait is of our own making: what only ever waits has to end some day.
    """
    return _written(session, POSTPONE, fence, seconds=seconds, why=why, counts=counts)


GIVE_UP = text(f"""
UPDATE crawl_jobs j SET source_worker = NULL, source_lease_until = NULL, source_asked_at = NULL,
    source_attempts = j.source_attempts - 1
WHERE {MINE} RETURNING j.id
""")


def give_up_step(session: Session, fence: StepFence) -> bool:
    """source with a worker → free at the same step: its worker leaves, or the job is paused. No attempt counts."""
    return _written(session, GIVE_UP, fence)


END = text(f"""
UPDATE crawl_jobs j SET source_state = 'exhausted', source_detail = :detail, {AT_REST} WHERE {MINE} RETURNING j.id
""")


def end_source(session: Session, fence: StepFence, detail: str) -> bool:
    """source with a worker → exhausted: an error that will not pass."""
    return _written(session, END, fence, detail=detail)


def _written(session: Session, statement: TextClause, fence: StepFence, **values: object) -> bool:
    return session.execute(statement, _guard(fence) | storable(values)).first() is not None


def _guard(fence: StepFence) -> dict[str, object]:
    return {"job_id": fence.job_id, "step": fence.step, "worker": fence.worker}
