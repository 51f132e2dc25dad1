"""Who uses the system: profiles, their API keys, what they did, and what they used per day."""

import datetime
import uuid
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    FetchedValue,
    ForeignKey,
    Index,
    Numeric,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import (
    OWNED,
    Base,
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


Gigabytes = Annotated[
    Decimal, mapped_column(Numeric(10, 2), server_default=text("0"), server_onupdate=FetchedValue())
]
UsedBytes = Annotated[
    int, mapped_column(BigInteger, server_default=text("0"), server_onupdate=FetchedValue())
]


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
    """A user."""

    __tablename__ = "profiles"
    __table_args__ = (
        one_of("role", Role),
        one_of("user_tier", Tier),
        UniqueConstraint("email"),
        Index(None, "user_tier"),
        {"comment": "Users. What belongs to one is deleted with it."},
    )

    id: Mapped[GeneratedUuid] = mapped_column(comment="From the identity provider, or generated")
    email: Mapped[str] = mapped_column(
        String(255), comment="One user for each address as it is written: capitals count"
    )
    full_name: Mapped[str | None] = mapped_column(String(100), comment="NULL: not given")
    avatar_url: Mapped[str | None] = mapped_column(
        comment="Picture of the user, for other services; NULL: none"
    )
    role: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(Role.USER),
        comment="For the access rules of other services; grants nothing here",
    )
    user_tier: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(Tier.FREE),
        comment="Subscription, set by other services; limits nothing here",
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    projects: Mapped[list["Project"]] = relationship(
        back_populates="user", lazy="selectin", cascade=OWNED, passive_deletes=True
    )
    activity_logs: Mapped[list["ActivityLog"]] = relationship(
        back_populates="user", lazy="selectin", cascade=OWNED, passive_deletes=True
    )
    credit_account: Mapped["CreditAccount | None"] = relationship(
        back_populates="user", lazy="selectin", cascade=OWNED, passive_deletes=True
    )
    api_keys: Mapped[list["APIKey"]] = relationship(
        back_populates="user", lazy="selectin", cascade=OWNED, passive_deletes=True
    )
    notifications: Mapped[list["Notification"]] = relationship(
        back_populates="user", lazy="selectin", cascade=OWNED, passive_deletes=True
    )
    notification_preference: Mapped["NotificationPreference | None"] = relationship(
        back_populates="user", lazy="selectin", cascade=OWNED, passive_deletes=True
    )
    usage_metrics: Mapped[list["UsageMetric"]] = relationship(
        back_populates="user", lazy="selectin", cascade=OWNED, passive_deletes=True
    )


class APIKey(Base):
    """A key for the HTTP interfaces of other services."""

    __tablename__ = "api_keys"
    __table_args__ = (
        one_of("status", APIKeyStatus),
        UniqueConstraint("key_hash"),
        Index(None, "user_id"),
        {"comment": "Keys for the HTTP interfaces of other services; only their hashes are kept."},
    )

    id: Mapped[GeneratedUuid] = mapped_column(comment="Generated")
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Owner of the key"
    )
    name: Mapped[str] = mapped_column(String(200), comment="What the owner calls it")
    key_hash: Mapped[str] = mapped_column(
        String(255), comment="What the issuing service keeps instead of the key"
    )
    key_prefix: Mapped[str] = mapped_column(
        String(20), comment="First characters of the key, to tell it from others"
    )
    status: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(APIKeyStatus.ACTIVE),
        comment="Written by the issuing service; passing expires_at does not change it",
    )
    permissions: Mapped[list[Any]] = mapped_column(
        server_default=text("'[]'::jsonb"),
        comment="Array of what the key opens, in the words of the issuing service",
    )
    rate_limit: Mapped[int] = mapped_column(server_default=text("1000"), comment="Requests an hour")
    usage_count: Mapped[Counter] = mapped_column(comment="Requests so far")
    last_used_at: Mapped[datetime.datetime | None] = mapped_column(comment="NULL: never used")
    last_used_ip: Mapped[str | None] = mapped_column(
        String(45), comment="IPv4 or IPv6 address of the last use; NULL: never used"
    )
    expires_at: Mapped[datetime.datetime | None] = mapped_column(comment="NULL: never")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped[Profile] = relationship(back_populates="api_keys", lazy="selectin")


class ActivityLog(Base):
    """One thing that somebody did, or that the system did."""

    __tablename__ = "activity_logs"
    __table_args__ = (
        Index(None, "user_id"),
        Index(None, "user_id", "timestamp"),
        Index(None, "resource_type", "resource_id"),
        {"comment": "Who did what, and when."},
    )

    id: Mapped[int] = mapped_column(primary_key=True, comment="Generated")
    user_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Who did it; NULL: the system"
    )
    action: Mapped[str] = mapped_column(comment="What was done, such as crawl_job.submitted")
    resource_type: Mapped[str | None] = mapped_column(
        String(50), comment="What it was done to, such as crawl_job; NULL: nothing"
    )
    resource_id: Mapped[str | None] = mapped_column(
        String(50), comment="Its id as text, without a foreign key: it may be gone"
    )
    details: Mapped[dict[str, Any] | None] = mapped_column(
        "metadata", comment="More about it; NULL: nothing more"
    )
    timestamp: Mapped[datetime.datetime] = mapped_column(
        server_default=func.now(), comment="When it was done"
    )

    user: Mapped[Profile | None] = relationship(back_populates="activity_logs", lazy="selectin")


class UsageMetric(Base):
    """What one user used on one day."""

    __tablename__ = "usage_metrics"
    __table_args__ = (
        CheckConstraint("images_processed >= 0", name="images_processed"),
        CheckConstraint("storage_used_bytes >= 0", name="storage_used_bytes"),
        CheckConstraint("bandwidth_used_bytes >= 0", name="bandwidth_used_bytes"),
        UniqueConstraint("user_id", "metric_date"),
        Index(None, "user_id"),
        {
            "postgresql_with": {"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02"},
            "comment": "What one user used on one day (UTC), exact in bytes; workers add to it as they commit.",
        },
    )

    id: Mapped[GeneratedUuid] = mapped_column(comment="Generated")
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Whose use"
    )
    metric_date: Mapped[datetime.date] = mapped_column(comment="Day in UTC")
    images_processed: Mapped[Counter] = mapped_column(comment="Images accepted that day")
    images_limit: Mapped[int] = mapped_column(
        server_default=text("10000"), comment="Allowance for other services to show; not enforced here"
    )
    storage_used_gb: Mapped[Gigabytes] = mapped_column(
        comment="storage_used_bytes in GB (10^9 bytes), rounded; a trigger ties the two"
    )
    storage_limit_gb: Mapped[Decimal] = mapped_column(
        Numeric(10, 2),
        server_default=text("100"),
        comment="Allowance for other services to show; not enforced here",
    )
    api_calls: Mapped[Counter] = mapped_column(
        comment="Requests to the HTTP interfaces of other services, which count them"
    )
    api_calls_limit: Mapped[int] = mapped_column(
        server_default=text("50000"), comment="Allowance for other services to show; not enforced here"
    )
    bandwidth_used_gb: Mapped[Gigabytes] = mapped_column(
        comment="bandwidth_used_bytes in GB (10^9 bytes), rounded; a trigger ties the two"
    )
    bandwidth_limit_gb: Mapped[Decimal] = mapped_column(
        Numeric(10, 2),
        server_default=text("500"),
        comment="Allowance for other services to show; not enforced here",
    )
    storage_used_bytes: Mapped[UsedBytes] = mapped_column(comment="Bytes of the images accepted that day")
    bandwidth_used_bytes: Mapped[UsedBytes] = mapped_column(
        comment="Bytes of bodies received that day, all attempts and refused candidates included"
    )
    created_at: Mapped[CreatedAt]

    user: Mapped[Profile] = relationship(back_populates="usage_metrics", lazy="selectin")
