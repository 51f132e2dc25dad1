"""What is to be crawled: projects, their jobs, and the chunks that workers take. lifecycle.py moves them."""

import datetime
import uuid
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    DDL,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, ByteCounter, Counter, CreatedAt, UpdatedAt, default_word, one_of

if TYPE_CHECKING:
    from models.images import Image
    from models.people import Profile

EMPTY_OBJECT = text("'{}'::jsonb")


class ProjectStatus(StrEnum):
    """State of a project."""

    ACTIVE = "active"
    ARCHIVED = "archived"
    DELETED = "deleted"


class JobStatus(StrEnum):
    """State of a job. The last three are its ends."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ChunkStatus(StrEnum):
    """State of a chunk. 'queued' is pending with ``queued_at`` set."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class SourceKind(StrEnum):
    """Where candidates come from."""

    URL_LIST = "url_list"


class BlockedReason(StrEnum):
    """Why a job's chunks are not dispatched, until it passes by itself."""

    OUT_OF_CREDITS = "out_of_credits"
    MONTHLY_LIMIT = "monthly_limit"


class SourceState(StrEnum):
    """Whether the source still yields: splitting (more is wanted now), open (it has more, and enough is out),
    exhausted (nothing is left), satisfied (``max_images`` is met).
    """

    SPLITTING = "splitting"
    OPEN = "open"
    EXHAUSTED = "exhausted"
    SATISFIED = "satisfied"


class Project(Base):
    """A folder of jobs that belongs to one user."""

    __tablename__ = "projects"
    __table_args__ = (one_of("status", ProjectStatus), Index(None, "user_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None]
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(String(20), server_default=default_word(ProjectStatus.ACTIVE))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped["Profile"] = relationship(back_populates="projects", lazy="selectin")
    crawl_jobs: Mapped[list["CrawlJob"]] = relationship(
        back_populates="project", lazy="selectin", passive_deletes="all"
    )


class CrawlJob(Base):
    """One request for images. Counters are exact: each is written in the transaction of what it counts.

    ``total_images`` candidates are known, ``downloaded_images`` bodies were fetched, ``valid_images`` images
    accepted, ``failed_images`` candidates refused (``failures`` has them by reason).
    """

    __tablename__ = "crawl_jobs"
    __table_args__ = (
        one_of("status", JobStatus),
        one_of("source_kind", SourceKind),
        one_of("source_state", SourceState),
        one_of("blocked_reason", BlockedReason),
        CheckConstraint("source_position >= 0", name="source_position"),
        CheckConstraint("progress BETWEEN 0 AND 100", name="progress"),
        CheckConstraint("priority BETWEEN 0 AND 10", name="priority"),
        CheckConstraint("max_images > 0", name="max_images"),
        CheckConstraint("unit_price > 0", name="unit_price"),
        CheckConstraint("active_chunks >= 0", name="active_chunks"),
        CheckConstraint("completed_chunks + failed_chunks <= total_chunks", name="chunks"),
        CheckConstraint("valid_images + failed_images <= total_images", name="images"),
        CheckConstraint(
            "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)", name="ended"
        ),
        Index(None, "project_id"),
        Index(None, "status"),
        Index(None, "project_id", "status"),
        Index(
            "ix_crawl_jobs_live",
            "id",
            postgresql_where=text("status IN ('pending', 'running')"),
        ),
        {"postgresql_with": {"fillfactor": "70"}},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    keywords: Mapped[list[Any] | None]
    max_images: Mapped[int] = mapped_column(server_default=text("1000"))
    status: Mapped[str] = mapped_column(String(20), server_default=default_word(JobStatus.PENDING))
    progress: Mapped[Counter]
    total_images: Mapped[Counter]
    downloaded_images: Mapped[Counter]
    valid_images: Mapped[Counter]
    total_chunks: Mapped[Counter]
    active_chunks: Mapped[Counter]
    completed_chunks: Mapped[Counter]
    failed_chunks: Mapped[Counter]
    task_ids: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    started_at: Mapped[datetime.datetime | None]
    completed_at: Mapped[datetime.datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    priority: Mapped[int] = mapped_column(server_default=text("5"))
    source_kind: Mapped[str | None] = mapped_column(String(20))
    source: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    source_step: Mapped[Counter]
    source_cursor: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    source_position: Mapped[Counter]
    source_state: Mapped[str] = mapped_column(String(20), server_default=default_word(SourceState.SPLITTING))
    store_url: Mapped[str | None]
    unit_price: Mapped[int] = mapped_column(server_default=text("1"))
    failed_images: Mapped[Counter]
    failures: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    stored_bytes: Mapped[ByteCounter]
    wire_bytes: Mapped[ByteCounter]
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    blocked_reason: Mapped[str | None] = mapped_column(String(50))
    dispatched_at: Mapped[datetime.datetime | None]
    paused_at: Mapped[datetime.datetime | None]
    cancelled_at: Mapped[datetime.datetime | None]

    project: Mapped[Project] = relationship(back_populates="crawl_jobs", lazy="selectin")
    images: Mapped[list["Image"]] = relationship(
        back_populates="crawl_job", lazy="selectin", passive_deletes="all"
    )
    chunks: Mapped[list["JobChunk"]] = relationship(
        back_populates="job", lazy="selectin", passive_deletes="all"
    )


class JobChunk(Base):
    """A run of candidates that one worker takes at once. ``image_range`` is {start, end}: positions in the job,
    end excluded. The fence is (status, attempt, checkpoint).
    """

    __tablename__ = "job_chunks"
    __table_args__ = (
        one_of("status", ChunkStatus),
        CheckConstraint("priority BETWEEN 0 AND 10", name="priority"),
        CheckConstraint("retry_count >= 0", name="retry_count"),
        CheckConstraint("accepted >= 0 AND failed >= 0 AND accepted + failed <= size", name="outcomes"),
        CheckConstraint(
            "status NOT IN ('completed', 'failed') OR accepted + failed = size", name="ended_whole"
        ),
        CheckConstraint(
            "status = 'processing' OR (lease_until IS NULL AND worker IS NULL)", name="idle_without_lease"
        ),
        CheckConstraint("queued_at IS NULL OR status = 'pending'", name="queued"),
        UniqueConstraint("job_id", "chunk_index"),
        Index(None, "job_id"),
        Index(None, "status"),
        Index(None, "job_id", "status"),
        Index(None, "priority", "created_at"),
        Index(None, "task_id"),
        Index(
            "ix_job_chunks_ready",
            "job_id",
            text("priority DESC"),
            "id",
            postgresql_where=text("status = 'pending' AND queued_at IS NULL"),
        ),
        Index(
            "ix_job_chunks_live",
            "job_id",
            postgresql_where=text("status = 'processing' OR (status = 'pending' AND queued_at IS NOT NULL)"),
        ),
        {"postgresql_with": {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02"}},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("crawl_jobs.id", ondelete="CASCADE"))
    chunk_index: Mapped[int]
    status: Mapped[str] = mapped_column(String(20), server_default=default_word(ChunkStatus.PENDING))
    priority: Mapped[int] = mapped_column(server_default=text("5"))
    image_range: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    error_message: Mapped[str | None]
    retry_count: Mapped[Counter]
    task_id: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    size: Mapped[Counter]
    accepted: Mapped[Counter]
    failed: Mapped[Counter]
    attempt: Mapped[Counter]
    checkpoint: Mapped[Counter]
    queued_at: Mapped[datetime.datetime | None]
    available_at: Mapped[datetime.datetime | None]
    lease_until: Mapped[datetime.datetime | None]
    worker: Mapped[str | None] = mapped_column(String(255))
    candidates: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)

    job: Mapped[CrawlJob] = relationship(back_populates="chunks", lazy="selectin")


event.listen(
    JobChunk.__table__,
    "after_create",
    # They are compressed already: PostgreSQL need not try again.
    DDL("ALTER TABLE job_chunks ALTER COLUMN candidates SET STORAGE EXTERNAL"),  # type: ignore[no-untyped-call]
)
