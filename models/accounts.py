"""The ledger's tables: one account per user and its transactions. models/credits.py holds the statements."""

import datetime
import uuid
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Numeric, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Counter, CreatedAt, GeneratedUuid, UpdatedAt, default_word, one_of

if TYPE_CHECKING:
    from models.people import Profile


class TransactionType(StrEnum):
    """Why credits moved."""

    PURCHASE = "purchase"
    USAGE = "usage"
    REFUND = "refund"
    BONUS = "bonus"


class TransactionStatus(StrEnum):
    """State of a transaction; only a pending one may still change."""

    COMPLETED = "completed"
    PENDING = "pending"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CreditAccount(Base):
    """A user's credits. ``current_balance`` is what is free to spend: open holds are already taken off it."""

    __tablename__ = "credit_accounts"
    __table_args__ = (
        CheckConstraint("current_balance >= 0", name="current_balance"),
        CheckConstraint("monthly_usage >= 0", name="monthly_usage"),
        CheckConstraint("refill_threshold > 0", name="refill_threshold"),
        CheckConstraint("refill_amount > 0", name="refill_amount"),
        CheckConstraint("monthly_limit > 0", name="monthly_limit"),
        CheckConstraint(r"usage_period ~ '^(\d{4}-\d{2})?$'", name="usage_period"),
        UniqueConstraint("user_id"),
    )

    id: Mapped[GeneratedUuid]
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    current_balance: Mapped[Counter]
    monthly_usage: Mapped[Counter]
    average_daily_usage: Mapped[Decimal] = mapped_column(Numeric(10, 2), server_default=text("0"))
    auto_refill_enabled: Mapped[bool] = mapped_column(server_default=text("false"))
    refill_threshold: Mapped[int] = mapped_column(server_default=text("100"))
    refill_amount: Mapped[int] = mapped_column(server_default=text("500"))
    monthly_limit: Mapped[int] = mapped_column(server_default=text("2000"))
    usage_period: Mapped[str] = mapped_column(String(7), server_default=text("''"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped["Profile"] = relationship(back_populates="credit_account", lazy="selectin")
    transactions: Mapped[list["CreditTransaction"]] = relationship(
        back_populates="account", lazy="selectin", passive_deletes="all"
    )


class CreditTransaction(Base):
    """One movement of credits. ``amount`` is signed; ``balance_after`` is the balance when the row reached its
    present status. A pending usage row is the hold of one chunk; job and chunk have no foreign key because the
    ledger outlives them.
    """

    __tablename__ = "credit_transactions"
    __table_args__ = (
        one_of("type", TransactionType),
        one_of("status", TransactionStatus),
        CheckConstraint("status <> 'pending' OR settled_at IS NULL", name="settled"),
        CheckConstraint("type <> 'usage' OR amount <= 0", name="usage_amount"),
        CheckConstraint("held IS NULL OR -amount <= held", name="held"),
        Index(None, "account_id"),
        Index(None, "user_id"),
        Index(None, "user_id", "created_at"),
        Index(None, "job_id"),
        Index(
            "uq_credit_transactions_open_hold",
            "chunk_id",
            unique=True,
            postgresql_where=text("type = 'usage' AND status = 'pending'"),
        ),
        Index("ix_credit_transactions_chunk_id", "chunk_id", postgresql_where=text("chunk_id IS NOT NULL")),
    )

    id: Mapped[GeneratedUuid]
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("credit_accounts.id", ondelete="CASCADE"))
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(20))
    description: Mapped[str | None]
    amount: Mapped[int]
    balance_after: Mapped[int]
    status: Mapped[str] = mapped_column(String(20), server_default=default_word(TransactionStatus.COMPLETED))
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    job_id: Mapped[int | None]
    chunk_id: Mapped[int | None] = mapped_column(BigInteger)
    held: Mapped[int | None]
    unit_price: Mapped[int | None]
    period: Mapped[str | None] = mapped_column(String(7))
    settled_at: Mapped[datetime.datetime | None]
    created_at: Mapped[CreatedAt]

    account: Mapped[CreditAccount] = relationship(back_populates="transactions", lazy="selectin")
