"""Credits that come in: references that count once, refills that wait for their payment, nightly averages."""

import sqlalchemy as sa

from models import ddl

revision = "010"
down_revision = "009"
branch_labels = None
depends_on = None

# Table, then column and what it means.
COMMENTS = {
    "credit_accounts": {
        "refill_declines": "Refills declined in a row; each doubles the pause before the next",
        "refill_after": "No refill before then, since one was declined; NULL: at any time",
        "averaged_on": "Day (UTC) on which average_daily_usage was computed last; NULL: not yet",
        "average_daily_usage": "Credits charged a day over the last 30 full days (UTC), or since it was made",
        "auto_refill_enabled": "Whether it buys credits by itself; nothing happens without a payment provider",
        "refill_threshold": "Balance under which a refill is bought",
        "refill_amount": "Credits of one refill",
    },
    "credit_transactions": {
        "reference": "Its name elsewhere, once for each type: a repeat adds nothing; NULL: none",
        "refill": "Whether the account bought it by itself: pending until the payment's answer is known",
        "job_id": "Job of a hold or a refund; no foreign key, the ledger outlives jobs; NULL: neither",
    },
}
COMMENTS_BEFORE = {
    "credit_accounts": {
        "average_daily_usage": "Credits, for other services; not written here",
        "auto_refill_enabled": "Wish to be topped up automatically; this version does not act on it",
        "refill_threshold": "Balance under which a top-up is wished",
        "refill_amount": "Credits of one top-up",
    },
    "credit_transactions": {
        "job_id": "Job of a hold; no foreign key, the ledger outlives jobs; NULL: no hold",
    },
}
CHARGED = "type = 'usage' AND status = 'completed'"
# Name, table, columns, condition, whether it is unique.
INDEXES = (
    (
        "uq_credit_transactions_reference",
        "credit_transactions",
        ["type", "reference"],
        "reference IS NOT NULL",
        True,
    ),
    (
        "uq_credit_transactions_open_refill",
        "credit_transactions",
        ["account_id"],
        "refill AND status = 'pending'",
        True,
    ),
    ("ix_credit_transactions_refills", "credit_transactions", ["account_id", "created_at"], "refill", False),
    (
        "ix_credit_transactions_charged",
        "credit_transactions",
        ["account_id", "(coalesce(settled_at, created_at))", "amount"],
        CHARGED,
        False,
    ),
    ("ix_credit_accounts_auto_refill", "credit_accounts", ["id"], "auto_refill_enabled", False),
)


def upgrade() -> None:
    ddl.add_columns(
        "credit_accounts",
        [
            sa.Column("refill_declines", sa.Integer(), nullable=False, server_default=sa.text("0")),
            sa.Column("refill_after", sa.DateTime(timezone=True)),
            sa.Column("averaged_on", sa.Date()),
        ],
    )
    ddl.add_columns(
        "credit_transactions",
        [
            sa.Column("reference", sa.String(255)),
            sa.Column("refill", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        ],
    )
    ddl.add_check("credit_accounts", "refill_declines", "refill_declines >= 0")
    ddl.add_check("credit_transactions", "refill", "NOT refill OR (type = 'purchase' AND amount > 0)")
    for name, table, columns, where, unique in INDEXES:
        ddl.create_index(name, table, columns, where=where, unique=unique)
    comment(COMMENTS)


def downgrade() -> None:
    for name, table, _columns, _where, _unique in reversed(INDEXES):
        ddl.drop_index(name, table)
    ddl.drop_columns("credit_transactions", ["reference", "refill"])
    ddl.drop_columns("credit_accounts", ["refill_declines", "refill_after", "averaged_on"])
    comment(COMMENTS_BEFORE)


def comment(comments: dict[str, dict[str, str]]) -> None:
    for table, columns in comments.items():
        said = (
            f"COMMENT ON COLUMN {table}.{column} IS '{meaning.replace(chr(39), chr(39) * 2)}'"
            for column, meaning in columns.items()
        )
        ddl.execute(table, ";\n".join(said))
