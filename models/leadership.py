"""Who leads the schedulers, and when it last finished a round: for those who ask whether anybody does."""

import datetime

from sqlalchemy import CheckConstraint, SmallInteger, String, func, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base


class Leadership(Base):
    """The only row: the present leader, or the last one."""

    __tablename__ = "leadership"
    __table_args__ = (
        CheckConstraint("id = 1", name="id"),
        {
            "comment": "The scheduler that leads, or led last: one row. The lock decides who leads, not this row."
        },
    )

    id: Mapped[int] = mapped_column(
        SmallInteger, primary_key=True, autoincrement=False, server_default=text("1"), comment="Always 1"
    )
    scheduler: Mapped[str] = mapped_column(String(255), comment="Process that leads (host/pid)")
    since: Mapped[datetime.datetime] = mapped_column(
        server_default=func.now(), comment="When it became the leader"
    )
    round_at: Mapped[datetime.datetime] = mapped_column(
        server_default=func.now(), comment="When it last finished a round, to the second"
    )


ROUND = text("""
INSERT INTO leadership AS l (scheduler) VALUES (:scheduler)
ON CONFLICT (id) DO UPDATE SET scheduler = excluded.scheduler, round_at = now(),
    since = CASE WHEN l.scheduler = excluded.scheduler THEN l.since ELSE now() END
""")


def finish_round(session: Session, scheduler: str) -> None:
    """Remember that this leader works; at most once a second."""
    session.execute(ROUND, {"scheduler": scheduler})


LAST = text("SELECT scheduler, CAST(date_part('epoch', now() - round_at) AS float) FROM leadership")


def last_round(session: Session) -> tuple[str, float] | None:
    """(scheduler that leads or led last, seconds since its last round); None when none ever finished one."""
    row = session.execute(LAST).one_or_none()
    return None if row is None else (row[0], row[1])
