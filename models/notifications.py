"""What users are told, and how they want to be told."""

import datetime
import uuid
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, CreatedAt, GeneratedUuid, UpdatedAt, default_word, one_of

if TYPE_CHECKING:
    from models.people import Profile

TRUE, FALSE = text("true"), text("false")


class NotificationType(StrEnum):
    """Tone of a notification."""

    SUCCESS = "success"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class DigestFrequency(StrEnum):
    """How often notifications are sent together."""

    REALTIME = "realtime"
    DAILY = "daily"
    WEEKLY = "weekly"
    NEVER = "never"


class Notification(Base):
    """One message to one user."""

    __tablename__ = "notifications"
    __table_args__ = (
        one_of("type", NotificationType),
        CheckConstraint("is_read = (read_at IS NOT NULL)", name="read"),
        Index(None, "user_id"),
        Index(None, "user_id", "is_read"),
        Index(None, "user_id", "created_at"),
        Index(
            "ix_notifications_billed_job",
            text("(metadata ->> 'job_id')"),
            postgresql_where=text("category = 'billing'"),
        ),
        {"comment": "What users are told: one row is one message to one user."},
    )

    id: Mapped[int] = mapped_column(primary_key=True, comment="Generated")
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Who is told"
    )
    title: Mapped[str] = mapped_column(String(255), comment="One line")
    message: Mapped[str] = mapped_column(comment="Whole sentences")
    type: Mapped[str] = mapped_column(
        String(50), server_default=default_word(NotificationType.INFO), comment="Tone"
    )
    category: Mapped[str | None] = mapped_column(
        String(50), comment="Topic, such as crawl_job or billing; NULL: none"
    )
    icon: Mapped[str | None] = mapped_column(
        String(50), comment="For the screens of other services; NULL: theirs to choose"
    )
    color: Mapped[str | None] = mapped_column(
        String(20), comment="For the screens of other services; NULL: theirs to choose"
    )
    action_url: Mapped[str | None] = mapped_column(comment="Where its button leads; NULL: no button")
    action_label: Mapped[str | None] = mapped_column(
        String(100), comment="Words on its button; NULL: no button"
    )
    is_read: Mapped[bool] = mapped_column(server_default=FALSE, comment="Written together with read_at")
    read_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="When it was read; NULL exactly while is_read is false"
    )
    details: Mapped[dict[str, Any] | None] = mapped_column(
        "metadata", comment="What it is about, such as {job_id}; NULL: nothing more"
    )
    created_at: Mapped[CreatedAt]

    user: Mapped["Profile"] = relationship(back_populates="notifications", lazy="selectin")


class NotificationPreference(Base):
    """Which channels and topics one user wants."""

    __tablename__ = "notification_preferences"
    __table_args__ = (
        one_of("digest_frequency", DigestFrequency),
        UniqueConstraint("user_id"),
        {"comment": "Which channels and topics a user wants, for the services that deliver."},
    )

    id: Mapped[GeneratedUuid] = mapped_column(comment="Generated")
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Whose wishes; one row each"
    )
    email_enabled: Mapped[bool] = mapped_column(server_default=TRUE, comment="Send by e-mail")
    push_enabled: Mapped[bool] = mapped_column(server_default=FALSE, comment="Send to devices")
    sms_enabled: Mapped[bool] = mapped_column(server_default=FALSE, comment="Send by text message")
    crawl_jobs_enabled: Mapped[bool] = mapped_column(server_default=TRUE, comment="Tell about jobs")
    datasets_enabled: Mapped[bool] = mapped_column(server_default=TRUE, comment="Tell about datasets")
    billing_enabled: Mapped[bool] = mapped_column(server_default=TRUE, comment="Tell about credits")
    security_enabled: Mapped[bool] = mapped_column(
        server_default=TRUE, comment="Tell about sign-ins and keys"
    )
    marketing_enabled: Mapped[bool] = mapped_column(server_default=FALSE, comment="Tell about offers")
    product_updates_enabled: Mapped[bool] = mapped_column(
        server_default=TRUE, comment="Tell about new versions"
    )
    digest_frequency: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(DigestFrequency.DAILY),
        comment="How often messages are sent together",
    )
    quiet_hours_start: Mapped[datetime.time | None] = mapped_column(
        comment="The user's local time from which nothing is sent; NULL: no quiet hours"
    )
    quiet_hours_end: Mapped[datetime.time | None] = mapped_column(
        comment="The user's local time until which nothing is sent; NULL: no quiet hours"
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped["Profile"] = relationship(back_populates="notification_preference", lazy="selectin")
