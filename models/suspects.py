"""Which candidate is to blame when worker after worker is lost over a chunk: it runs alone, and is named before.

Each arrow takes a Session and never commits. A row lives while its chunk is in such trouble.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, Counter
from models.lifecycle import Fence, checkpoint_chunk
from models.outcomes import Candidate, Outcome, Reason
from models.recording import Tally, storable

ALONE_LOSSES = 2
"""After so many lost leases in a row without an outcome, careful mode included, candidates run one at a time."""
GUILTY_LOSSES = 4
"""A candidate under which so many workers in a row were lost, while nothing else ran, is what kills them: once or
twice is chance where workers are killed every few seconds.
"""


class Suspect(Base):
    """The candidate that a chunk's worker runs alone."""

    __tablename__ = "suspects"
    __table_args__ = {  # noqa: RUF012 - SQLAlchemy reads this name from the class.
        "comment": "Candidates that run alone, named before they begin: whose fault it is if the worker is lost."
    }

    chunk_id: Mapped[int] = mapped_column(
        ForeignKey("job_chunks.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
        comment="Its chunk, which has one suspect at most",
    )
    position: Mapped[int] = mapped_column(comment="Its place in the job")
    url: Mapped[str] = mapped_column(comment="What it is")
    attempt: Mapped[int] = mapped_column(comment="Attempt of the chunk in which it last ran alone")
    losses: Mapped[Counter] = mapped_column(comment="Workers lost in a row while it ran alone")


SUSPECT = text("SELECT position, losses FROM suspects WHERE chunk_id = :chunk_id")


@dataclass(frozen=True, slots=True)
class Suspicion:
    """How a chunk whose worker was lost is run: ``alone``, one candidate at a time, beginning with ``first``."""

    alone: bool = False
    first: int | None = None


def suspicion(session: Session, chunk_id: int, retry_count: int) -> Suspicion:
    """How to run a chunk of which ``retry_count`` leases in a row were lost."""
    if not retry_count:
        return Suspicion()
    row = session.execute(SUSPECT, {"chunk_id": chunk_id}).one_or_none()
    first = row.position if row is not None and row.losses else None
    return Suspicion(alone=retry_count >= ALONE_LOSSES or first is not None, first=first)


NAME = text("""
INSERT INTO suspects AS s (chunk_id, position, url, attempt) VALUES (:chunk_id, :position, :url, :attempt)
ON CONFLICT (chunk_id) DO UPDATE SET position = excluded.position, url = excluded.url, attempt = excluded.attempt,
    losses = CASE WHEN s.position = excluded.position THEN s.losses ELSE 0 END
""")


def suspect_candidate(
    session: Session, fence: Fence, outcomes: Sequence[Outcome], lease_seconds: float, candidate: Candidate
) -> Tally | None:
    """processing → processing: a checkpoint, after which this candidate runs alone."""
    tally = checkpoint_chunk(session, fence, outcomes, lease_seconds)
    if tally is not None:
        named = {"position": candidate.position, "url": storable(candidate.url)}
        session.execute(NAME, {"chunk_id": fence.chunk_id, "attempt": fence.attempt, **named})
    return tally


COUNT_LOSS = text("""
UPDATE suspects s SET losses = losses + 1 FROM job_chunks c
WHERE s.chunk_id = :chunk_id AND c.id = s.chunk_id AND c.attempt = s.attempt
RETURNING s.position, s.losses
""")
CONVICT = text("""
WITH guilty AS (DELETE FROM suspects WHERE chunk_id = :chunk_id RETURNING position, url)
INSERT INTO failures (job_id, chunk_id, position, position_end, url, reason, detail)
SELECT :job_id, :chunk_id, position, position, url, :reason, :detail FROM guilty
WHERE NOT EXISTS (SELECT FROM images i WHERE i.crawl_job_id = :job_id AND i.position = guilty.position)
    AND NOT EXISTS (SELECT FROM failures f WHERE f.job_id = :job_id
        AND guilty.position BETWEEN f.position AND f.position_end)
RETURNING position
""")


FORGET = text("DELETE FROM suspects WHERE chunk_id = ANY(CAST(:chunk_ids AS int[]))")


def forget_suspects(session: Session, chunk_ids: Sequence[int]) -> None:
    """What these chunks are tried again for is another story: earlier losses convict nobody of it."""
    session.execute(FORGET, {"chunk_ids": list(chunk_ids)})


def convict(session: Session, job_id: int, chunk_id: int) -> Tally | None:
    """Count a lost worker against the candidate that ran alone, if one did: after GUILTY_LOSSES in a row its
    outcome is ``worker_lost``. Returns that outcome's tally, or None. Part of the rescue, with the chunk locked.
    """
    row = session.execute(COUNT_LOSS, {"chunk_id": chunk_id}).one_or_none()
    if row is None or row.losses < GUILTY_LOSSES:
        return None
    detail = f"{row.losses} workers in a row were lost while nothing else ran"
    parameters = {
        "job_id": job_id,
        "chunk_id": chunk_id,
        "reason": Reason.WORKER_LOST.value,
        "detail": detail,
    }
    if session.execute(CONVICT, parameters).first() is None:
        return None
    return Tally(failures={Reason.WORKER_LOST.value: 1})
