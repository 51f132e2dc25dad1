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
    SmallInteger,
    String,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import (
    OWNED,
    Base,
    ByteCounter,
    Counter,
    CreatedAt,
    UpdatedAt,
    array_of,
    default_word,
    one_of,
)
from models.opt_outs import OptOut
from models.outcomes import Verification
from models.readiness import RAISE_READY_PRIORITY, TRIGGERS

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
    URL_TABLE = "url_table"
    KEYWORDS = "keywords"
    PAGES = "pages"


DISCOVERED = (SourceKind.KEYWORDS, SourceKind.PAGES)
"""Sources that a worker advances, since that means to ask the web: see discovery.py."""


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


OPEN_ENDED = f"""source_kind IN ({", ".join(f"'{kind.value}'" for kind in DISCOVERED)})
    AND source_state IN ('{SourceState.SPLITTING.value}', '{SourceState.OPEN.value}')"""
"""Nobody knows yet how many candidates a job will have."""


class Project(Base):
    """A folder of jobs that belongs to one user."""

    __tablename__ = "projects"
    __table_args__ = (
        one_of("status", ProjectStatus),
        Index(None, "user_id"),
        {"comment": "Folders of jobs. Each belongs to one user, whose account pays."},
    )

    id: Mapped[int] = mapped_column(primary_key=True, comment="Generated")
    name: Mapped[str] = mapped_column(String(100), comment="What its owner calls it; need not be unique")
    description: Mapped[str | None] = mapped_column(comment="NULL: none")
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Owner, whose account pays for its jobs"
    )
    status: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(ProjectStatus.ACTIVE),
        comment="Only an active project takes jobs from `pixtrawl submit`; jobs that run go on",
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped["Profile"] = relationship(back_populates="projects", lazy="selectin")
    crawl_jobs: Mapped[list["CrawlJob"]] = relationship(
        back_populates="project", lazy="selectin", cascade=OWNED, passive_deletes=True
    )


class CrawlJob(Base):
    """One request for images."""

    __tablename__ = "crawl_jobs"
    __table_args__ = (
        one_of("status", JobStatus),
        one_of("source_kind", SourceKind),
        one_of("source_state", SourceState),
        one_of("blocked_reason", BlockedReason),
        one_of("verification", Verification),
        CheckConstraint("source_position >= 0", name="source_position"),
        CheckConstraint("(source_lease_until IS NULL) = (source_worker IS NULL)", name="source_leased"),
        CheckConstraint("(source_available_at IS NULL) = (source_wait IS NULL)", name="source_waits"),
        CheckConstraint("source_attempts >= 0", name="source_attempts"),
        CheckConstraint("progress BETWEEN 0 AND 100", name="progress"),
        CheckConstraint("priority BETWEEN 0 AND 10", name="priority"),
        CheckConstraint("max_images > 0", name="max_images"),
        CheckConstraint("unit_price > 0", name="unit_price"),
        array_of("ignored_opt_outs", OptOut),
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
        Index(
            "ix_crawl_jobs_reprioritized",
            "reprioritized_at",
            postgresql_where=text("reprioritized_at IS NOT NULL"),
        ),
        Index(
            "ix_crawl_jobs_unswept",
            "completed_at",
            postgresql_where=text(
                "completed_at IS NOT NULL AND source_kind IS NOT NULL "
                "AND (swept_at IS NULL OR swept_at < completed_at)"
            ),
        ),
        Index(
            "ix_crawl_jobs_input",
            text("(source ->> 'object')"),
            postgresql_where=text("source_kind IS NOT NULL"),
        ),
        {
            "postgresql_with": {"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02"},
            "comment": "Requests for images. Each counter moves in the transaction of what it counts.",
        },
    )

    id: Mapped[int] = mapped_column(primary_key=True, comment="Generated")
    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), comment="Its project, and by it the user who pays"
    )
    name: Mapped[str] = mapped_column(String(100), comment="What its owner calls it; need not be unique")
    keywords: Mapped[list[Any] | None] = mapped_column(
        comment="Array of words to search for; NULL: it does not search"
    )
    max_images: Mapped[int] = mapped_column(
        server_default=text("1000"), comment="Most images that are accepted; the source ends there"
    )
    status: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(JobStatus.PENDING),
        comment="Only the scheduler ends a job with a source_kind, and only a retry reopens it",
    )
    progress: Mapped[Counter] = mapped_column(
        comment="Percent of candidates with an outcome, or of max_images if more; 100 only when completed"
    )
    total_images: Mapped[Counter] = mapped_column(
        comment="Candidates known so far; for lists and tables of URLs all of them from the start"
    )
    downloaded_images: Mapped[Counter] = mapped_column(
        comment="Bodies that arrived whole; of a candidate that was tried again, each"
    )
    valid_images: Mapped[Counter] = mapped_column(comment="Accepted candidates = its rows in images")
    total_chunks: Mapped[Counter] = mapped_column(comment="Chunks made so far = its rows in job_chunks")
    active_chunks: Mapped[Counter] = mapped_column(comment="Chunks that a worker has now")
    completed_chunks: Mapped[Counter] = mapped_column(comment="Chunks that ended as completed")
    failed_chunks: Mapped[Counter] = mapped_column(comment="Chunks that ended as failed")
    task_ids: Mapped[list[Any]] = mapped_column(
        server_default=text("'[]'::jsonb"),
        comment="Celery ids of the chunks in flight; refreshed by the scheduler, at most once a second",
    )
    started_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When its first chunk started, or its end if none did; NULL: not yet"
    )
    completed_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When it ended, however it ended; NULL exactly while it is pending or running"
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    priority: Mapped[int] = mapped_column(
        server_default=text("5"),
        comment="0 to 10, 10 most urgent; its chunks have it, too, unless reprioritized_at is set",
    )
    source_kind: Mapped[str | None] = mapped_column(
        String(20),
        comment="Where candidates come from; NULL: made by another service, the scheduler leaves it alone",
    )
    source: Mapped[dict[str, Any]] = mapped_column(
        server_default=EMPTY_OBJECT,
        comment="What the source needs, by its kind; for url_list and url_table the stored object and its files",
    )
    source_step: Mapped[Counter] = mapped_column(
        comment="Moves of the cursor so far, the guard of the next one"
    )
    source_cursor: Mapped[dict[str, Any]] = mapped_column(
        server_default=EMPTY_OBJECT, comment="Where the source goes on, by its kind"
    )
    source_position: Mapped[Counter] = mapped_column(
        comment="Position of the next candidate to go into a chunk"
    )
    source_state: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(SourceState.SPLITTING),
        comment="splitting: yields now; open: waits until more are wanted; the others: ended",
    )
    source_detail: Mapped[str | None] = mapped_column(
        comment="Why the source ended, or where it broke off, for people; NULL: nothing to say"
    )
    source_worker: Mapped[str | None] = mapped_column(
        String(255),
        comment="Process that makes the next step of a source which asks the web; NULL: nobody does now",
    )
    source_lease_until: Mapped[datetime.datetime | None] = mapped_column(
        comment="That process renews it or loses the step; NULL exactly while source_worker is"
    )
    source_attempts: Mapped[Counter] = mapped_column(
        comment="Starts of the next step so far that came to nothing, or are under way"
    )
    source_asked_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When workers were last asked to make the next step; NULL: no message is under way"
    )
    source_available_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="Nobody makes the next step before; NULL: it need not wait"
    )
    source_wait: Mapped[str | None] = mapped_column(
        comment="Why it waits, for people; NULL exactly while source_available_at is"
    )
    store_url: Mapped[str | None] = mapped_column(
        comment="Folder of its images, as a URL; NULL: made by another service"
    )
    unit_price: Mapped[int] = mapped_column(
        server_default=text("1"), comment="Credits for one accepted image, fixed when it was submitted"
    )
    failed_images: Mapped[Counter] = mapped_column(
        comment="Candidates without an image = positions that its failures cover"
    )
    failures: Mapped[dict[str, Any]] = mapped_column(
        server_default=EMPTY_OBJECT, comment="{reason: candidates}, in sum failed_images"
    )
    stored_bytes: Mapped[ByteCounter] = mapped_column(comment="Bytes of its images")
    wire_bytes: Mapped[ByteCounter] = mapped_column(
        comment="Bytes of bodies received, all attempts and refused candidates included"
    )
    fingerprint: Mapped[str | None] = mapped_column(
        String(64),
        comment="sha256 (hex) of input and options, by which `run` finds a job again; NULL: not asked for",
    )
    blocked_reason: Mapped[str | None] = mapped_column(
        String(50), comment="Why nothing is dispatched until its account can pay; NULL: not blocked"
    )
    dispatched_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When a chunk of it was last dispatched, from when ageing counts; NULL: never"
    )
    ready_priority: Mapped[int | None] = mapped_column(
        SmallInteger,
        comment="Priority of its best ready chunk, or higher; NULL: none is ready. Kept by a trigger",
    )
    reprioritized_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When its priority changed, while chunks of it may still have another; NULL: none has"
    )
    paused_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="Since when nothing is dispatched, by the user's wish; NULL: not paused"
    )
    cancelled_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When its end was asked for; it ends once its chunks have; NULL: never"
    )
    swept_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When objects that no row of it names were last looked for after an end; NULL: not yet"
    )
    deleting_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="Since when it is being deleted in batches, for good; NULL: it is not"
    )
    ignored_opt_outs: Mapped[list[Any]] = mapped_column(
        server_default=text("'[]'::jsonb"),
        comment="Array of the opt-outs that it does not obey, as far as the operator of a worker allows it, too",
    )
    verification: Mapped[str] = mapped_column(
        String(10),
        server_default=default_word(Verification.FULL),
        comment="How closely its images are looked at: full (decoded), header (walked), none (their first bytes)",
    )

    project: Mapped[Project] = relationship(back_populates="crawl_jobs", lazy="selectin")
    images: Mapped[list["Image"]] = relationship(
        back_populates="crawl_job", lazy="selectin", cascade=OWNED, passive_deletes=True
    )
    chunks: Mapped[list["JobChunk"]] = relationship(
        back_populates="job", lazy="selectin", cascade=OWNED, passive_deletes=True
    )


class JobChunk(Base):
    """A run of candidates that one worker takes at once."""

    __tablename__ = "job_chunks"
    __table_args__ = (
        one_of("status", ChunkStatus),
        CheckConstraint("priority BETWEEN 0 AND 10", name="priority"),
        CheckConstraint("retry_count >= 0", name="retry_count"),
        CheckConstraint("accepted >= 0 AND failed >= 0 AND accepted + failed <= size", name="outcomes"),
        CheckConstraint(
            "status NOT IN ('completed', 'failed') OR accepted + failed = size", name="ended_whole"
        ),
        CheckConstraint("(status = 'processing') = (lease_until IS NOT NULL)", name="leased"),
        CheckConstraint("(lease_until IS NULL) = (worker IS NULL)", name="lease_holder"),
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
            postgresql_where=text(
                "status = 'pending' AND queued_at IS NULL AND available_at IS NULL AND candidates IS NOT NULL"
            ),
        ),
        Index(
            "ix_job_chunks_parked",
            "available_at",
            postgresql_where=text("status = 'pending' AND available_at IS NOT NULL"),
        ),
        Index(
            "ix_job_chunks_live",
            "job_id",
            postgresql_where=text("status = 'processing' OR (status = 'pending' AND queued_at IS NOT NULL)"),
        ),
        {
            "postgresql_with": {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02"},
            "comment": "Runs of candidates that a worker takes at once, fenced by (status, attempt, checkpoint).",
        },
    )

    id: Mapped[int] = mapped_column(primary_key=True, comment="Generated")
    job_id: Mapped[int] = mapped_column(ForeignKey("crawl_jobs.id", ondelete="CASCADE"), comment="Its job")
    chunk_index: Mapped[int] = mapped_column(comment="Number within its job, from 0")
    status: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(ChunkStatus.PENDING),
        comment="'Queued' is pending with queued_at; ended means that each candidate has an outcome",
    )
    priority: Mapped[int] = mapped_column(
        server_default=text("5"), comment="0 to 10, 10 most urgent; from its job"
    )
    image_range: Mapped[dict[str, Any]] = mapped_column(
        server_default=EMPTY_OBJECT,
        comment="{start, end}: positions of its candidates in the job, end excluded",
    )
    error_message: Mapped[str | None] = mapped_column(
        comment="Why it ended before its candidates were tried; NULL: it did not"
    )
    retry_count: Mapped[Counter] = mapped_column(
        comment="Leases lost in a row without an outcome; too many fail it"
    )
    task_id: Mapped[str | None] = mapped_column(
        String(255), comment="Celery id of its last dispatch; NULL: never dispatched"
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    size: Mapped[Counter] = mapped_column(comment="Its candidates")
    accepted: Mapped[Counter] = mapped_column(comment="Candidates accepted = its rows in images")
    failed: Mapped[Counter] = mapped_column(
        comment="Candidates without an image = positions that its failures cover"
    )
    attempt: Mapped[Counter] = mapped_column(
        comment="Dispatches so far; a message of an earlier one is ignored"
    )
    checkpoint: Mapped[Counter] = mapped_column(comment="Commits of outcomes so far")
    queued_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When its message was last sent; NULL: no message is under way"
    )
    available_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="Parked until then; NULL: not parked"
    )
    lease_until: Mapped[datetime.datetime | None] = mapped_column(
        comment="Its worker renews it or loses the chunk; infinity: another service's; NULL: not processing"
    )
    worker: Mapped[str | None] = mapped_column(
        String(255), comment="Process that has it (host/pid); NULL exactly while lease_until is"
    )
    candidates: Mapped[bytes | None] = mapped_column(
        LargeBinary,
        deferred=True,
        comment="[[url, line, {more}?], …] as JSON, compressed by zlib; NULL: another service's, never dispatched",
    )

    job: Mapped[CrawlJob] = relationship(back_populates="chunks", lazy="selectin")


event.listen(
    JobChunk.__table__,
    "after_create",
    # They are compressed already: PostgreSQL need not try again.
    DDL("ALTER TABLE job_chunks ALTER COLUMN candidates SET STORAGE EXTERNAL"),  # type: ignore[no-untyped-call]
)
for statement in (RAISE_READY_PRIORITY, *TRIGGERS):
    event.listen(JobChunk.__table__, "after_create", DDL(statement))  # type: ignore[no-untyped-call]
