"""What became of the candidates: accepted images, failures of the others. One position, one outcome."""

import datetime
from typing import TYPE_CHECKING, Any

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
    """An accepted candidate."""

    __tablename__ = "images"
    __table_args__ = (
        CheckConstraint("octet_length(sha256) = 32", name="sha256"),
        UniqueConstraint("crawl_job_id", "position"),
        UniqueConstraint("crawl_job_id", "sha256"),
        Index(None, "crawl_job_id"),
        {
            "comment": "Accepted candidates: each has its object in the store and is paid for by its chunk's hold."
        },
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True, comment="Generated")
    crawl_job_id: Mapped[int] = mapped_column(
        ForeignKey("crawl_jobs.id", ondelete="CASCADE"), comment="Its job"
    )
    original_url: Mapped[str] = mapped_column(comment="URL as it stands in the source")
    filename: Mapped[str] = mapped_column(
        String(255), comment="Name of its object: sha256 (hex) and extension"
    )
    storage_url: Mapped[str | None] = mapped_column(comment="Where its object is, as a URL")
    width: Mapped[int | None] = mapped_column(
        comment="Pixels as they are stored, before orientation; NULL: its job does not look"
    )
    height: Mapped[int | None] = mapped_column(
        comment="Pixels as they are stored, before orientation; NULL: its job does not look"
    )
    file_size: Mapped[int | None] = mapped_column(comment="Bytes of its object")
    format: Mapped[str | None] = mapped_column(
        String(10), comment="What its bytes are, whatever its URL says: jpeg, png, webp, gif, avif"
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    chunk_id: Mapped[int | None] = mapped_column(comment="Chunk that it was in; no foreign key")
    position: Mapped[int | None] = mapped_column(
        comment="Position of the candidate in its job, from 0; NULL: another service's"
    )
    sha256: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="Digest of its object, 32 bytes; NULL: another service's"
    )
    perceptual_hash: Mapped[int | None] = mapped_column(
        BigInteger,
        comment="64-bit difference hash, signed: similar pictures differ in few bits; NULL: not decoded",
    )
    orientation: Mapped[int | None] = mapped_column(
        SmallInteger, comment="EXIF orientation, 1 to 8; NULL: its job does not look"
    )
    final_url: Mapped[str | None] = mapped_column(comment="URL that answered, after redirects")
    keyword: Mapped[str | None] = mapped_column(comment="Word that found it; NULL: it was not searched for")
    source_page: Mapped[str | None] = mapped_column(
        comment="Page that it was found on; NULL: the source is no page"
    )
    provider: Mapped[str | None] = mapped_column(String(50), comment="Service that named it; NULL: none")
    licence: Mapped[str | None] = mapped_column(comment="As its source states it; NULL: not stated")
    creator: Mapped[str | None] = mapped_column(comment="As its source states it; NULL: not stated")
    fetched_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When it was stored, by the worker's clock"
    )
    http_status: Mapped[int | None] = mapped_column(
        SmallInteger, comment="Of the answer that it came with: 200 or 203; NULL: not recorded"
    )
    attempts: Mapped[int | None] = mapped_column(
        SmallInteger, comment="Transfers that it took; NULL: not recorded"
    )
    elapsed_ms: Mapped[int | None] = mapped_column(
        comment="Milliseconds of its transfers, redirects included, pauses not; NULL: not recorded"
    )
    details: Mapped[dict[str, Any] | None] = mapped_column(
        "metadata", comment="Whatever else its source says: other columns of a table, …; NULL: nothing"
    )

    crawl_job: Mapped["CrawlJob"] = relationship(back_populates="images", lazy="selectin")


class Failure(Base):
    """Candidates without an image, one or a range of them, that ended for one reason."""

    __tablename__ = "failures"
    __table_args__ = (
        one_of("reason", Reason),
        CheckConstraint("position >= 0 AND position_end >= position", name="range"),
        CheckConstraint(
            "evidence IS NULL OR (reason IN ('robots', 'opt_out') AND jsonb_typeof(evidence) = 'object')",
            name="evidence",
        ),
        {"comment": "Candidates without an image, a row each or a range, and why. They are never charged."},
    )

    job_id: Mapped[int] = mapped_column(
        ForeignKey("crawl_jobs.id", ondelete="CASCADE"), primary_key=True, comment="Its job"
    )
    position: Mapped[int] = mapped_column(
        primary_key=True,
        autoincrement=False,
        comment="Position of the candidate in its job, from 0; of a range the first",
    )
    position_end: Mapped[int] = mapped_column(
        comment="Last position of the range, included; the same for one candidate"
    )
    chunk_id: Mapped[int | None] = mapped_column(
        comment="Chunk that it was in; no foreign key; NULL: in none yet"
    )
    url: Mapped[str | None] = mapped_column(
        comment="URL as it stands in the source; NULL: ended together with others"
    )
    reason: Mapped[str] = mapped_column(String(30), comment="Why there is no image: docs/outcomes.md")
    http_status: Mapped[int | None] = mapped_column(
        SmallInteger, comment="Of the answer that it ended on; NULL: none"
    )
    final_url: Mapped[str | None] = mapped_column(
        comment="URL that it ended on, after redirects; NULL: none was asked"
    )
    detail: Mapped[str | None] = mapped_column(comment="What happened, for people")
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.now(), comment="When it was recorded")
    evidence: Mapped[dict[str, Any] | None] = mapped_column(
        comment="What an owner said against it, where and when: docs/opt-outs.md; NULL: nobody said anything"
    )
    attempts: Mapped[int | None] = mapped_column(
        SmallInteger, comment="Transfers that were tried; NULL: none, or not recorded"
    )
    elapsed_ms: Mapped[int | None] = mapped_column(
        comment="Milliseconds of its transfers, redirects included, pauses not; NULL: none, or not recorded"
    )
