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
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(255))
    message: Mapped[str]
    type: Mapped[str] = mapped_column(String(50), server_default=default_word(NotificationType.INFO))
    category: Mapped[str | None] = mapped_column(String(50))
    icon: Mapped[str | None] = mapped_column(String(50))
    color: Mapped[str | None] = mapped_column(String(20))
    action_url: Mapped[str | None]
    action_label: Mapped[str | None] = mapped_column(String(100))
    is_read: Mapped[bool] = mapped_column(server_default=FALSE)
    read_at: Mapped[datetime.datetime | None]
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    created_at: Mapped[CreatedAt]

    user: Mapped["Profile"] = relationship(back_populates="notifications", lazy="selectin")


class NotificationPreference(Base):
    """Which channels and topics one user wants. Quiet hours are local times of day."""

    __tablename__ = "notification_preferences"
    __table_args__ = (one_of("digest_frequency", DigestFrequency), UniqueConstraint("user_id"))

    id: Mapped[GeneratedUuid]
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    email_enabled: Mapped[bool] = mapped_column(server_default=TRUE)
    push_enabled: Mapped[bool] = mapped_column(server_default=FALSE)
    sms_enabled: Mapped[bool] = mapped_column(server_default=FALSE)
    crawl_jobs_enabled: Mapped[bool] = mapped_column(server_default=TRUE)
    datasets_enabled: Mapped[bool] = mapped_column(server_default=TRUE)
    billing_enabled: Mapped[bool] = mapped_column(server_default=TRUE)
    security_enabled: Mapped[bool] = mapped_column(server_default=TRUE)
    marketing_enabled: Mapped[bool] = mapped_column(server_default=FALSE)
    product_updates_enabled: Mapped[bool] = mapped_column(server_default=TRUE)
    digest_frequency: Mapped[str] = mapped_column(
        String(20), server_default=default_word(DigestFrequency.DAILY)
    )
    quiet_hours_start: Mapped[datetime.time | None]
    quiet_hours_end: Mapped[datetime.time | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped["Profile"] = relationship(back_populates="notification_preference", lazy="selectin")
