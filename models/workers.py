"""Which workers are alive and at work: each writes its own row, dispatch reads how many slots there are."""

import datetime
from dataclasses import dataclass

from sqlalchemy import CheckConstraint, String, func, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, Counter


class Worker(Base):
    """One worker and its heartbeat."""

    __tablename__ = "workers"
    __table_args__ = (
        CheckConstraint("slots >= 0", name="slots"),
        CheckConstraint("busy >= 0", name="busy"),
        CheckConstraint("aside >= 0", name="aside"),
        {"comment": "Celery workers that are alive: each writes its own row and deletes it when it leaves."},
    )

    name: Mapped[str] = mapped_column(
        String(255), primary_key=True, comment="Celery's name of the worker, and its process id"
    )
    slots: Mapped[int] = mapped_column(comment="Chunks that it runs at once")
    version: Mapped[str] = mapped_column(String(20), comment="Version of Pixtrawl")
    started_at: Mapped[datetime.datetime] = mapped_column(
        server_default=func.now(), comment="When it wrote its row first"
    )
    seen_at: Mapped[datetime.datetime] = mapped_column(
        server_default=func.now(),
        comment="Last heartbeat, one every 3 seconds; a worker unseen for 15 seconds counts as gone",
    )
    busy: Mapped[Counter] = mapped_column(comment="Chunks that it runs now")
    active_at: Mapped[datetime.datetime] = mapped_column(
        server_default=func.now(),
        comment="When it last began or ended a chunk, to a few seconds; its start if it never did",
    )
    aside: Mapped[Counter] = mapped_column(
        comment="Chunks of which only stragglers are left, beside those that it runs"
    )


LIVE_SECONDS = 15
"""A worker whose heartbeat is older is not counted as alive."""
LIVE = """
SELECT count(*) AS workers, coalesce(sum(slots), 0) AS slots, coalesce(sum(aside), 0) AS aside FROM workers
WHERE slots > 0 AND seen_at > now() - make_interval(secs => :seconds)
"""
"""``aside``: chunks that go on aside, which are in flight and take no slot."""
LOOK = text(LIVE)


def live_workers(session: Session) -> int:
    """Workers seen in the last LIVE_SECONDS that run chunks."""
    return _live(session)[0]


def live_slots(session: Session) -> int:
    """Chunks that the workers seen in the last LIVE_SECONDS run at once, all together."""
    return _live(session)[1]


def _live(session: Session) -> tuple[int, int]:
    """(workers, slots)."""
    row = session.execute(LOOK, {"seconds": LIVE_SECONDS}).one()
    return int(row.workers), int(row.slots)


OF_HOST = text("""
SELECT name, slots - busy AS free, CAST(date_part('epoch', now() - active_at) AS float) AS quiet_seconds
FROM workers WHERE slots > 0 AND seen_at > now() - make_interval(secs => :seconds)
    AND split_part(split_part(name, '@', -1), '/', 1) = :host
ORDER BY name
""")


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker seen in the last LIVE_SECONDS; ``quiet_seconds`` ago it last began or ended a chunk."""

    name: str
    free: int
    quiet_seconds: float


def live_workers_of(session: Session, host: str) -> list[LiveWorker]:
    """The live workers of one machine, or container."""
    rows = session.execute(OF_HOST, {"seconds": LIVE_SECONDS, "host": host})
    return [LiveWorker(*row) for row in rows]
