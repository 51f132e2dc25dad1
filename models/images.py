"""What became of the candidates: accepted images, failures of the others. One position, one outcome."""

import datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    UniqueConstraint,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, CreatedAt, UpdatedAt, one_of
from models.outcomes import Reason

if TYPE_CHECKING:
    from models.jobs import CrawlJob


class Image(Base):
    """An accepted image: its object is in the store and it is paid for. Sizes in bytes and pixels."""

    __tablename__ = "images"
    __table_args__ = (
        CheckConstraint("octet_length(sha256) = 32", name="sha256"),
        UniqueConstraint("crawl_job_id", "position"),
        UniqueConstraint("crawl_job_id", "sha256"),
        Index(None, "crawl_job_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    crawl_job_id: Mapped[int] = mapped_column(ForeignKey("crawl_jobs.id", ondelete="CASCADE"))
    original_url: Mapped[str]
    filename: Mapped[str] = mapped_column(String(255))
    storage_url: Mapped[str | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    file_size: Mapped[int | None]
    format: Mapped[str | None] = mapped_column(String(10))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    chunk_id: Mapped[int | None]
    position: Mapped[int | None]
    sha256: Mapped[bytes | None] = mapped_column(LargeBinary)
    perceptual_hash: Mapped[int | None] = mapped_column(BigInteger)
    orientation: Mapped[int | None] = mapped_column(SmallInteger)
    final_url: Mapped[str | None]
    keyword: Mapped[str | None]
    source_page: Mapped[str | None]
    provider: Mapped[str | None] = mapped_column(String(50))
    licence: Mapped[str | None]
    creator: Mapped[str | None]
    fetched_at: Mapped[datetime.datetime | None]

    crawl_job: Mapped["CrawlJob"] = relationship(back_populates="images", lazy="selectin")


class Failure(Base):
    """Candidates without an image: one position, or the range from ``position`` to ``position_end`` included,
    that ended for one reason.
    """

    __tablename__ = "failures"
    __table_args__ = (
        one_of("reason", Reason),
        CheckConstraint("position >= 0 AND position_end >= position", name="range"),
    )

    job_id: Mapped[int] = mapped_column(ForeignKey("crawl_jobs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position_end: Mapped[int]
    chunk_id: Mapped[int | None]
    url: Mapped[str | None]
    reason: Mapped[str] = mapped_column(String(30))
    http_status: Mapped[int | None] = mapped_column(SmallInteger)
    final_url: Mapped[str | None]
    detail: Mapped[str | None]
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
