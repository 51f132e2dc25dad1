"""Who uses the system: profiles, their API keys, what they did, and what they used per day."""

import datetime
import uuid
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, Numeric, String, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import (
    Base,
    ByteCounter,
    Counter,
    CreatedAt,
    GeneratedUuid,
    UpdatedAt,
    default_word,
    one_of,
)

if TYPE_CHECKING:
    from models.accounts import CreditAccount
    from models.jobs import Project
    from models.notifications import Notification, NotificationPreference


class Role(StrEnum):
    """What a profile may do in the services that share this schema."""

    USER = "user"
    ADMIN = "admin"
    MODERATOR = "moderator"


class Tier(StrEnum):
    """Subscription of a profile."""

    FREE = "FREE"
    PRO = "PRO"
    ENTERPRISE = "ENTERPRISE"


class APIKeyStatus(StrEnum):
    """State of an API key."""

    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


class Profile(Base):
    """A user. The id comes from the identity provider, or is generated."""

    __tablename__ = "profiles"
    __table_args__ = (
        one_of("role", Role),
        one_of("user_tier", Tier),
        UniqueConstraint("email"),
        Index(None, "user_tier"),
    )

    id: Mapped[GeneratedUuid]
    email: Mapped[str] = mapped_column(String(255))
    full_name: Mapped[str | None] = mapped_column(String(100))
    avatar_url: Mapped[str | None]
    role: Mapped[str] = mapped_column(String(20), server_default=default_word(Role.USER))
    user_tier: Mapped[str] = mapped_column(String(20), server_default=default_word(Tier.FREE))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    projects: Mapped[list["Project"]] = relationship(
        back_populates="user", lazy="selectin", passive_deletes="all"
    )
    activity_logs: Mapped[list["ActivityLog"]] = relationship(
        back_populates="user", lazy="selectin", passive_deletes="all"
    )
    credit_account: Mapped["CreditAccount | None"] = relationship(
        back_populates="user", lazy="selectin", passive_deletes="all"
    )
    api_keys: Mapped[list["APIKey"]] = relationship(
        back_populates="user", lazy="selectin", passive_deletes="all"
    )
    notifications: Mapped[list["Notification"]] = relationship(
        back_populates="user", lazy="selectin", passive_deletes="all"
    )
    notification_preference: Mapped["NotificationPreference | None"] = relationship(
        back_populates="user", lazy="selectin", passive_deletes="all"
    )
    usage_metrics: Mapped[list["UsageMetric"]] = relationship(
        back_populates="user", lazy="selectin", passive_deletes="all"
    )


class APIKey(Base):
    """A key for the services' HTTP interfaces; only its hash is kept. ``rate_limit`` is per hour."""

    __tablename__ = "api_keys"
    __table_args__ = (
        one_of("status", APIKeyStatus),
        UniqueConstraint("key_hash"),
        Index(None, "user_id"),
    )

    id: Mapped[GeneratedUuid]
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    key_hash: Mapped[str] = mapped_column(String(255))
    key_prefix: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(String(20), server_default=default_word(APIKeyStatus.ACTIVE))
    permissions: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    rate_limit: Mapped[int] = mapped_column(server_default=text("1000"))
    usage_count: Mapped[Counter]
    last_used_at: Mapped[datetime.datetime | None]
    last_used_ip: Mapped[str | None] = mapped_column(String(45))
    expires_at: Mapped[datetime.datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped[Profile] = relationship(back_populates="api_keys", lazy="selectin")


class ActivityLog(Base):
    """One thing that somebody did, or that the system did (``user_id`` null)."""

    __tablename__ = "activity_logs"
    __table_args__ = (
        Index(None, "user_id"),
        Index(None, "user_id", "timestamp"),
        Index(None, "resource_type", "resource_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    action: Mapped[str]
    resource_type: Mapped[str | None] = mapped_column(String(50))
    resource_id: Mapped[str | None] = mapped_column(String(50))
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    timestamp: Mapped[datetime.datetime] = mapped_column(server_default=func.now())

    user: Mapped[Profile | None] = relationship(back_populates="activity_logs", lazy="selectin")


class UsageMetric(Base):
    """What one user used on one day (UTC). Bytes are exact; the GB columns are derived and rounded."""

    __tablename__ = "usage_metrics"
    __table_args__ = (
        CheckConstraint("images_processed >= 0", name="images_processed"),
        CheckConstraint("storage_used_bytes >= 0", name="storage_used_bytes"),
        CheckConstraint("bandwidth_used_bytes >= 0", name="bandwidth_used_bytes"),
        UniqueConstraint("user_id", "metric_date"),
        Index(None, "user_id"),
    )

    id: Mapped[GeneratedUuid]
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    metric_date: Mapped[datetime.date]
    images_processed: Mapped[Counter]
    images_limit: Mapped[int] = mapped_column(server_default=text("10000"))
    storage_used_gb: Mapped[Decimal] = mapped_column(Numeric(10, 2), server_default=text("0"))
    storage_limit_gb: Mapped[Decimal] = mapped_column(Numeric(10, 2), server_default=text("100"))
    api_calls: Mapped[Counter]
    api_calls_limit: Mapped[int] = mapped_column(server_default=text("50000"))
    bandwidth_used_gb: Mapped[Decimal] = mapped_column(Numeric(10, 2), server_default=text("0"))
    bandwidth_limit_gb: Mapped[Decimal] = mapped_column(Numeric(10, 2), server_default=text("500"))
    storage_used_bytes: Mapped[ByteCounter]
    bandwidth_used_bytes: Mapped[ByteCounter]
    created_at: Mapped[CreatedAt]

    user: Mapped[Profile] = relationship(back_populates="usage_metrics", lazy="selectin")
