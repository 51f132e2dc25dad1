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


OPEN_HOLD = text("type = 'usage' AND status = 'pending'")
OPEN_REFILL = text("refill AND status = 'pending'")


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
    """A user's credits."""

    __tablename__ = "credit_accounts"
    __table_args__ = (
        CheckConstraint("current_balance >= 0", name="current_balance"),
        CheckConstraint("monthly_usage >= 0", name="monthly_usage"),
        CheckConstraint("refill_threshold > 0", name="refill_threshold"),
        CheckConstraint("refill_amount > 0", name="refill_amount"),
        CheckConstraint("monthly_limit > 0", name="monthly_limit"),
        CheckConstraint("refill_declines >= 0", name="refill_declines"),
        CheckConstraint(r"usage_period ~ '^(\d{4}-\d{2})?$'", name="usage_period"),
        UniqueConstraint("user_id"),
        Index("ix_credit_accounts_auto_refill", "id", postgresql_where=text("auto_refill_enabled")),
        {
            "postgresql_with": {"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02"},
            "comment": "Credits of a user. The balance is the sum of completed amounts and open holds.",
        },
    )

    id: Mapped[GeneratedUuid] = mapped_column(comment="Generated")
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Owner; one account each"
    )
    current_balance: Mapped[Counter] = mapped_column(
        comment="Credits free to spend: open holds are taken off already"
    )
    monthly_usage: Mapped[Counter] = mapped_column(comment="Credits charged or held in usage_period")
    average_daily_usage: Mapped[Decimal] = mapped_column(
        Numeric(10, 2),
        server_default=text("0"),
        comment="Credits charged a day over the last 30 full days (UTC), or since it was made",
    )
    auto_refill_enabled: Mapped[bool] = mapped_column(
        server_default=text("false"),
        comment="Whether it buys credits by itself; nothing happens without a payment provider",
    )
    refill_threshold: Mapped[int] = mapped_column(
        server_default=text("100"), comment="Balance under which a refill is bought"
    )
    refill_amount: Mapped[int] = mapped_column(server_default=text("500"), comment="Credits of one refill")
    refill_declines: Mapped[Counter] = mapped_column(
        comment="Refills declined in a row; each doubles the pause before the next"
    )
    refill_after: Mapped[datetime.datetime | None] = mapped_column(
        comment="No refill before then, since one was declined; NULL: at any time"
    )
    monthly_limit: Mapped[int] = mapped_column(
        server_default=text("2000"), comment="Most that monthly_usage may reach; a hold beyond it is refused"
    )
    usage_period: Mapped[str] = mapped_column(
        String(7),
        server_default=text("''"),
        comment="Month of monthly_usage (YYYY-MM in UTC), never earlier than before; empty: no hold yet",
    )
    averaged_on: Mapped[datetime.date | None] = mapped_column(
        comment="Day (UTC) on which average_daily_usage was computed last; NULL: not yet"
    )
    closing_at: Mapped[datetime.datetime | None] = mapped_column(
        comment="Since when it is being deleted in batches, which the ledger allows then; NULL: not closing"
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped["Profile"] = relationship(back_populates="credit_account", lazy="selectin")
    # The ledger refuses a DELETE of a transaction: they go by the foreign key alone.
    transactions: Mapped[list["CreditTransaction"]] = relationship(
        back_populates="account", lazy="selectin", passive_deletes="all"
    )


class CreditTransaction(Base):
    """One movement of credits, or the hold of one chunk."""

    __tablename__ = "credit_transactions"
    __table_args__ = (
        one_of("type", TransactionType),
        one_of("status", TransactionStatus),
        CheckConstraint("status <> 'pending' OR settled_at IS NULL", name="settled"),
        CheckConstraint("type <> 'usage' OR amount <= 0", name="usage_amount"),
        CheckConstraint("held IS NULL OR -amount <= held", name="held"),
        CheckConstraint("NOT refill OR (type = 'purchase' AND amount > 0)", name="refill"),
        Index(None, "account_id"),
        Index(None, "user_id"),
        Index(None, "user_id", "created_at"),
        Index(None, "job_id"),
        Index(
            "uq_credit_transactions_open_hold",
            "chunk_id",
            unique=True,
            postgresql_where=OPEN_HOLD,
        ),
        Index("ix_credit_transactions_chunk_id", "chunk_id", postgresql_where=text("chunk_id IS NOT NULL")),
        Index("ix_credit_transactions_held_by_job", "job_id", postgresql_where=OPEN_HOLD),
        Index("ix_credit_transactions_held_by_account", "account_id", postgresql_where=OPEN_HOLD),
        Index(
            "ix_credit_transactions_top_up",
            "user_id",
            "settled_at",
            postgresql_where=text("type IN ('purchase', 'bonus') AND status = 'completed'"),
        ),
        Index(
            "uq_credit_transactions_reference",
            "type",
            "reference",
            unique=True,
            postgresql_where=text("reference IS NOT NULL"),
        ),
        Index("uq_credit_transactions_open_refill", "account_id", unique=True, postgresql_where=OPEN_REFILL),
        Index("ix_credit_transactions_refills", "account_id", "created_at", postgresql_where=text("refill")),
        Index(
            "ix_credit_transactions_charged",
            "account_id",
            text("(coalesce(settled_at, created_at))"),
            "amount",
            postgresql_where=text("type = 'usage' AND status = 'completed'"),
        ),
        {
            "postgresql_with": {"autovacuum_vacuum_scale_factor": "0.05"},
            "comment": "The ledger. What has ended never changes; a pending usage row is the hold of a chunk.",
        },
    )

    id: Mapped[GeneratedUuid] = mapped_column(comment="Generated")
    account_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("credit_accounts.id", ondelete="CASCADE"), comment="Account that it moves"
    )
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("profiles.id", ondelete="CASCADE"), comment="Owner of the account"
    )
    type: Mapped[str] = mapped_column(String(20), comment="Why credits moved")
    description: Mapped[str | None] = mapped_column(comment="For people; NULL: none")
    amount: Mapped[int] = mapped_column(
        comment="Credits, negative for usage; counts when completed, and when a pending usage"
    )
    balance_after: Mapped[int] = mapped_column(
        comment="Balance of the account when this row got its present status"
    )
    status: Mapped[str] = mapped_column(
        String(20),
        server_default=default_word(TransactionStatus.COMPLETED),
        comment="Only a pending row can change; then it has ended",
    )
    details: Mapped[dict[str, Any] | None] = mapped_column(
        "metadata", comment="More about it; NULL: nothing more"
    )
    job_id: Mapped[int | None] = mapped_column(
        comment="Job of a hold or a refund; no foreign key, the ledger outlives jobs; NULL: neither"
    )
    chunk_id: Mapped[int | None] = mapped_column(
        BigInteger, comment="Chunk of a hold, at most one open hold each; no foreign key; NULL: no hold"
    )
    held: Mapped[int | None] = mapped_column(
        comment="Credits taken when the chunk was dispatched: its worst case, or all there were; NULL: no hold"
    )
    unit_price: Mapped[int | None] = mapped_column(
        comment="Credits for one image of the chunk; NULL: no hold"
    )
    period: Mapped[str | None] = mapped_column(
        String(7), comment="Month in whose usage it counts (YYYY-MM in UTC); NULL: no hold"
    )
    settled_at: Mapped[datetime.datetime | None] = mapped_column(comment="When it ended; NULL while pending")
    reference: Mapped[str | None] = mapped_column(
        String(255), comment="Its name elsewhere, once for each type: a repeat adds nothing; NULL: none"
    )
    refill: Mapped[bool] = mapped_column(
        server_default=text("false"),
        comment="Whether the account bought it by itself: pending until the payment's answer is known",
    )
    created_at: Mapped[CreatedAt]

    account: Mapped[CreditAccount] = relationship(back_populates="transactions", lazy="selectin")
