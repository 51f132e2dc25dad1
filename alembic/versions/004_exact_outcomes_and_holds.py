"""What this project adds: fences and leases of chunks, exact outcomes, holds of credits, live workers."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op
from models import ddl

revision = "004"
down_revision = "003"
branch_labels = None
depends_on = None

REASONS = (
    "'invalid_url', 'blocked_address', 'robots', 'opt_out', 'dns', 'connect', 'tls', 'protocol', 'timeout', "
    "'too_slow', 'redirects', 'http_status', 'rate_limited', 'too_large', 'not_an_image', 'corrupt', "
    "'too_many_pixels', 'filtered', 'duplicate', 'not_needed', 'worker_lost', 'cancelled'"
)


def moment(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True))


def required(name: str, kind: sa.types.TypeEngine[Any], default: str) -> sa.Column[Any]:
    """A NOT NULL column; ``default`` is SQL, so that rows that exist need no rewrite."""
    return sa.Column(name, kind, nullable=False, server_default=sa.text(default))


COLUMNS: dict[str, Callable[[], tuple[sa.Column[Any], ...]]] = {
    "crawl_jobs": lambda: (
        required("priority", sa.Integer(), "5"),
        sa.Column("source_kind", sa.String(20)),
        required("source", JSONB(), "'{}'::jsonb"),
        required("source_step", sa.Integer(), "0"),
        required("source_position", sa.Integer(), "0"),
        required("source_cursor", JSONB(), "'{}'::jsonb"),
        required("source_state", sa.String(20), "'splitting'"),
        sa.Column("store_url", sa.Text()),
        required("unit_price", sa.Integer(), "1"),
        required("failed_images", sa.Integer(), "0"),
        required("failures", JSONB(), "'{}'::jsonb"),
        required("stored_bytes", sa.BigInteger(), "0"),
        required("wire_bytes", sa.BigInteger(), "0"),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("blocked_reason", sa.String(50)),
        moment("dispatched_at"),
        moment("paused_at"),
        moment("cancelled_at"),
    ),
    "job_chunks": lambda: (
        required("size", sa.Integer(), "0"),
        required("accepted", sa.Integer(), "0"),
        required("failed", sa.Integer(), "0"),
        required("attempt", sa.Integer(), "0"),
        required("checkpoint", sa.Integer(), "0"),
        moment("queued_at"),
        moment("available_at"),
        moment("lease_until"),
        sa.Column("worker", sa.String(255)),
        sa.Column("candidates", sa.LargeBinary()),
    ),
    "images": lambda: (
        sa.Column("chunk_id", sa.Integer()),
        sa.Column("position", sa.Integer()),
        sa.Column("sha256", sa.LargeBinary()),
        sa.Column("perceptual_hash", sa.BigInteger()),
        sa.Column("orientation", sa.SmallInteger()),
        sa.Column("final_url", sa.Text()),
        sa.Column("keyword", sa.Text()),
        sa.Column("source_page", sa.Text()),
        sa.Column("provider", sa.String(50)),
        sa.Column("licence", sa.Text()),
        sa.Column("creator", sa.Text()),
        moment("fetched_at"),
    ),
    "credit_accounts": lambda: (required("usage_period", sa.String(7), "''"),),
    "credit_transactions": lambda: (
        sa.Column("job_id", sa.Integer()),
        sa.Column("chunk_id", sa.BigInteger()),
        sa.Column("held", sa.Integer()),
        sa.Column("unit_price", sa.Integer()),
        sa.Column("period", sa.String(7)),
        moment("settled_at"),
    ),
    "usage_metrics": lambda: (
        required("storage_used_bytes", sa.BigInteger(), "0"),
        required("bandwidth_used_bytes", sa.BigInteger(), "0"),
    ),
}

# Table, name, rule. Each needs a column of this revision, so it goes when the column goes.
CHECKS: dict[str, dict[str, str]] = {
    "crawl_jobs": {
        "source_kind": "source_kind IN ('url_list')",
        "source_state": "source_state IN ('splitting', 'open', 'exhausted', 'satisfied')",
        "blocked_reason": "blocked_reason IN ('out_of_credits', 'monthly_limit')",
        "source_position": "source_position >= 0",
        "priority": "priority BETWEEN 0 AND 10",
        "unit_price": "unit_price > 0",
        "images": "valid_images + failed_images <= total_images",
    },
    "job_chunks": {
        "outcomes": "accepted >= 0 AND failed >= 0 AND accepted + failed <= size",
        "ended_whole": "status NOT IN ('completed', 'failed') OR accepted + failed = size",
        "idle_without_lease": "status = 'processing' OR (lease_until IS NULL AND worker IS NULL)",
        "queued": "queued_at IS NULL OR status = 'pending'",
    },
    "images": {"sha256": "octet_length(sha256) = 32"},
    "credit_accounts": {"usage_period": r"usage_period ~ '^(\d{4}-\d{2})?$'"},
    "credit_transactions": {
        "settled": "status <> 'pending' OR settled_at IS NULL",
        "held": "held IS NULL OR -amount <= held",
    },
    "usage_metrics": {
        "storage_used_bytes": "storage_used_bytes >= 0",
        "bandwidth_used_bytes": "bandwidth_used_bytes >= 0",
    },
}

# Name, table, columns, condition.
INDEXES = (
    ("ix_crawl_jobs_live", "crawl_jobs", ["id"], "status IN ('pending', 'running')"),
    (
        "ix_job_chunks_ready",
        "job_chunks",
        ["job_id", "priority DESC", "id"],
        "status = 'pending' AND queued_at IS NULL",
    ),
    (
        "ix_job_chunks_live",
        "job_chunks",
        ["job_id"],
        "status = 'processing' OR (status = 'pending' AND queued_at IS NOT NULL)",
    ),
    ("ix_credit_transactions_job_id", "credit_transactions", ["job_id"], None),
    ("ix_credit_transactions_chunk_id", "credit_transactions", ["chunk_id"], "chunk_id IS NOT NULL"),
)
OPEN_HOLD = "type = 'usage' AND status = 'pending'"


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        ddl.add_columns(table, columns())
    # The candidates are compressed already.
    ddl.execute("job_chunks", "ALTER TABLE job_chunks ALTER COLUMN candidates SET STORAGE EXTERNAL")
    carry_over()
    for table, rules in CHECKS.items():
        ddl.add_checks(table, rules)
    for column in ("position", "sha256"):
        ddl.add_unique("images", ["crawl_job_id", column])
    for name, table, on, where in INDEXES:
        ddl.create_index(name, table, on, where=where)
    ddl.create_index(
        "uq_credit_transactions_open_hold", "credit_transactions", ["chunk_id"], unique=True, where=OPEN_HOLD
    )
    create_failures()
    create_workers()
    ddl.execute("crawl_jobs", "ALTER TABLE crawl_jobs SET (fillfactor = 70)")
    ddl.execute(
        "job_chunks",
        "ALTER TABLE job_chunks SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)",
    )


def downgrade() -> None:
    """Indexes first, beside writers; then the columns go, with the constraints on them."""
    ddl.execute("job_chunks", "ALTER TABLE job_chunks RESET (fillfactor, autovacuum_vacuum_scale_factor)")
    ddl.execute("crawl_jobs", "ALTER TABLE crawl_jobs RESET (fillfactor)")
    ddl.drop_table("workers")
    ddl.drop_table("failures")
    for name, table, _on, _where in reversed(INDEXES):
        ddl.drop_index(name, table)
    ddl.drop_index("uq_credit_transactions_open_hold", "credit_transactions")
    for table, columns in reversed(COLUMNS.items()):
        ddl.drop_columns(table, [column.name for column in columns()])


def carry_over() -> None:
    """Counters were not held to the new rule, and usage is derived from bytes from now on (1 GB = 10^9)."""
    ddl.update("crawl_jobs", "total_images = valid_images", "valid_images > total_images")
    for used in ("storage_used", "bandwidth_used"):
        ddl.update(
            "usage_metrics", f"{used}_bytes = {used}_gb * 1000000000", f"{used}_gb > 0 AND {used}_bytes = 0"
        )


def create_failures() -> None:
    ddl.create_table(
        "failures",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("position_end", sa.Integer(), nullable=False),
        sa.Column("chunk_id", sa.Integer()),
        sa.Column("url", sa.Text()),
        sa.Column("reason", sa.String(30), nullable=False),
        sa.Column("http_status", sa.SmallInteger()),
        sa.Column("final_url", sa.Text()),
        sa.Column("detail", sa.Text()),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("pk_failures")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["crawl_jobs.id"], name=op.f("fk_failures_job_id_crawl_jobs"), ondelete="CASCADE"
        ),
        sa.CheckConstraint(f"reason IN ({REASONS})", name=op.f("ck_failures_reason")),
        sa.CheckConstraint("position >= 0 AND position_end >= position", name=op.f("ck_failures_range")),
    )


def create_workers() -> None:
    ddl.create_table(
        "workers",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(20), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
        sa.CheckConstraint("slots >= 0", name=op.f("ck_workers_slots")),
    )
