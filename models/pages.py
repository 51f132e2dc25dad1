"""The frontier of a crawl by pages: every page that a job knows, once. models/frontier.py moves them."""

import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Counter, default_word, one_of

KEY_BYTES = 16
COUNTS = ("depth", "hops", "losses", "attempts", "refusals")


class PageState(StrEnum):
    """Where a page stands: it waits, was read, is elsewhere, or could not be read. The last three are ends."""

    PENDING = "pending"
    READ = "read"
    REDIRECTED = "redirected"
    FAILED = "failed"


class PageKind(StrEnum):
    """What a page is taken for: where the crawl starts (a page or a sitemap), a page that is linked, a sitemap."""

    START = "start"
    PAGE = "page"
    SITEMAP = "sitemap"


class Page(Base):
    """One page of one job."""

    __tablename__ = "pages"
    __table_args__ = (
        one_of("kind", PageKind),
        one_of("state", PageState),
        CheckConstraint(f"octet_length(key) = {KEY_BYTES}", name="key"),
        *(CheckConstraint(f"{name} >= 0", name=name) for name in COUNTS),
        CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name="failed"),
        CheckConstraint("rest IS NULL OR state = 'pending'", name="rest"),
        Index(
            "ix_pages_pending",
            "job_id",
            "depth",
            "number",
            postgresql_where=text("state = 'pending'"),
        ),
        Index("ix_pages_pattern", "job_id", "pattern"),
        {"comment": "Every page that a job of source_kind pages knows, once."},
    )

    job_id: Mapped[int] = mapped_column(
        ForeignKey("crawl_jobs.id", ondelete="CASCADE"), primary_key=True, comment="Its job"
    )
    key: Mapped[bytes] = mapped_column(
        LargeBinary, primary_key=True, comment="First 16 bytes of sha256 of its URL's normal form"
    )
    number: Mapped[int] = mapped_column(comment="Pages of one depth are read in this order; from 1")
    kind: Mapped[str] = mapped_column(
        String(10), comment="start: given by the user; page: linked; sitemap: names pages"
    )
    url: Mapped[str] = mapped_column(comment="What is asked for, byte for byte")
    depth: Mapped[int] = mapped_column(SmallInteger, comment="Links from a page that was given; of those 0")
    hops: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0"), comment="Redirects in a row that led to it"
    )
    found_on: Mapped[str | None] = mapped_column(
        comment="URL of the page that linked or redirected to it; NULL: it was given"
    )
    pattern: Mapped[bytes] = mapped_column(
        LargeBinary, comment="16 bytes for host and path with all numbers alike"
    )
    state: Mapped[str] = mapped_column(
        String(10),
        server_default=default_word(PageState.PENDING),
        comment="pending: to be read; the others are its ends",
    )
    reason: Mapped[str | None] = mapped_column(
        String(20),
        comment="Why it failed, or opt_out: it was read, and its images may not be taken; NULL: neither",
    )
    http_status: Mapped[int | None] = mapped_column(SmallInteger, comment="NULL: there was no response")
    detail: Mapped[str | None] = mapped_column(comment="More for people; NULL: there is nothing to say")
    evidence: Mapped[dict[str, Any] | None] = mapped_column(
        comment="What its owner said against it, and where; NULL: nothing"
    )
    images: Mapped[Counter] = mapped_column(comment="Images that it names")
    fresh: Mapped[bool] = mapped_column(
        server_default=text("false"),
        comment="Whether it brought a new image, or a page of another pattern",
    )
    losses: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0"), comment="Steps in a row that began with it and never ended"
    )
    attempts: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0"), comment="Transfers that failed, and may be tried again"
    )
    refusals: Mapped[int] = mapped_column(
        SmallInteger,
        server_default=text("0"),
        comment="Times that its host asked to wait instead of giving it",
    )
    rest: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="Its images that were not wanted yet, as JSON, compressed; NULL: none"
    )
    ended_at: Mapped[datetime.datetime | None] = mapped_column(comment="When it ended; NULL: it has not")
