"""What this project adds: fences and leases of chunks, exact outcomes, holds of credits, live workers."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import JSONB

from alembic import context, op

revision = "004"
down_revision = "003"
branch_labels = None
depends_on = None

INTEGER_MAX = 2**31 - 1
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
CHECKS = (
    ("crawl_jobs", "source_kind", "source_kind IN ('url_list')"),
    ("crawl_jobs", "source_state", "source_state IN ('splitting', 'open', 'exhausted', 'satisfied')"),
    ("crawl_jobs", "blocked_reason", "blocked_reason IN ('out_of_credits', 'monthly_limit')"),
    ("crawl_jobs", "source_position", "source_position >= 0"),
    ("crawl_jobs", "priority", "priority BETWEEN 0 AND 10"),
    ("crawl_jobs", "unit_price", "unit_price > 0"),
    ("crawl_jobs", "images", "valid_images + failed_images <= total_images"),
    ("job_chunks", "outcomes", "accepted >= 0 AND failed >= 0 AND accepted + failed <= size"),
    ("job_chunks", "ended_whole", "status NOT IN ('completed', 'failed') OR accepted + failed = size"),
    (
        "job_chunks",
        "idle_without_lease",
        "status = 'processing' OR (lease_until IS NULL AND worker IS NULL)",
    ),
    ("job_chunks", "queued", "queued_at IS NULL OR status = 'pending'"),
    ("images", "sha256", "octet_length(sha256) = 32"),
    ("credit_accounts", "usage_period", r"usage_period ~ '^(\d{4}-\d{2})?$'"),
    ("credit_transactions", "settled", "status <> 'pending' OR settled_at IS NULL"),
    ("credit_transactions", "held", "held IS NULL OR -amount <= held"),
    ("usage_metrics", "storage_used_bytes", "storage_used_bytes >= 0"),
    ("usage_metrics", "bandwidth_used_bytes", "bandwidth_used_bytes >= 0"),
)


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for column in columns():
            op.add_column(table, column)
    carry_over()
    for table, name, rule in CHECKS:
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, rule)
    widen_image_id()
    create_unique_keys_and_indexes()
    create_failures()
    create_workers()
    op.execute("ALTER TABLE crawl_jobs SET (fillfactor = 70)")
    op.execute("ALTER TABLE job_chunks SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)")
    # The candidates are compressed already.
    op.execute("ALTER TABLE job_chunks ALTER COLUMN candidates SET STORAGE EXTERNAL")


def downgrade() -> None:
    refuse_large_image_ids()
    op.execute("ALTER TABLE job_chunks RESET (fillfactor, autovacuum_vacuum_scale_factor)")
    op.execute("ALTER TABLE crawl_jobs RESET (fillfactor)")
    op.drop_table("workers")
    op.drop_table("failures")
    drop_indexes_of_kept_columns()
    narrow_image_id()
    for table, name, _rule in reversed(CHECKS):
        op.drop_constraint(op.f(f"ck_{table}_{name}"), table, type_="check")
    for table, columns in reversed(COLUMNS.items()):
        for column in reversed(columns()):
            op.drop_column(table, column.name)


def carry_over() -> None:
    """Counters were not held to the new rule, and usage is derived from bytes from now on (1 GB = 10^9)."""
    op.execute("UPDATE crawl_jobs SET total_images = valid_images WHERE valid_images > total_images")
    op.execute(
        "UPDATE usage_metrics SET storage_used_bytes = greatest(storage_used_gb, 0) * 1000000000, "
        "bandwidth_used_bytes = greatest(bandwidth_used_gb, 0) * 1000000000 "
        "WHERE storage_used_gb > 0 OR bandwidth_used_gb > 0"
    )


def widen_image_id() -> None:
    """Serial to bigint identity; the new sequence goes on where the old one stood, so no id is used twice."""
    op.execute("ALTER TABLE images ALTER COLUMN id DROP DEFAULT")
    op.execute("ALTER SEQUENCE images_id_seq OWNED BY NONE")
    op.execute("ALTER SEQUENCE images_id_seq RENAME TO images_id_serial")
    op.execute("ALTER TABLE images ALTER COLUMN id TYPE bigint")
    op.execute("ALTER TABLE images ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY")
    op.execute("SELECT setval('images_id_seq', last_value, is_called) FROM images_id_serial")
    op.execute("DROP SEQUENCE images_id_serial")


def refuse_large_image_ids() -> None:
    """Stop before anything is changed. A script of SQL has the server's own refusal: integer out of range."""
    if context.is_offline_mode():
        return
    largest = op.get_bind().execute(sa.text("SELECT last_value FROM images_id_seq")).scalar_one()
    if largest > INTEGER_MAX:
        raise CommandError(
            f"Revision 003 has images.id as integer, and ids up to {largest} were given. Nothing was changed."
        )


def narrow_image_id() -> None:
    op.execute("CREATE SEQUENCE images_id_serial AS integer")
    op.execute("SELECT setval('images_id_serial', last_value, is_called) FROM images_id_seq")
    op.execute("ALTER TABLE images ALTER COLUMN id DROP IDENTITY")
    op.execute("ALTER TABLE images ALTER COLUMN id TYPE integer")
    op.execute("ALTER SEQUENCE images_id_serial RENAME TO images_id_seq")
    op.execute("ALTER SEQUENCE images_id_seq OWNED BY images.id")
    op.execute("ALTER TABLE images ALTER COLUMN id SET DEFAULT nextval('images_id_seq')")


def create_unique_keys_and_indexes() -> None:
    for column in ("position", "sha256"):
        name = op.f(f"uq_images_crawl_job_id_{column}")
        op.create_unique_constraint(name, "images", ["crawl_job_id", column])
    op.create_index(
        "ix_crawl_jobs_live", "crawl_jobs", ["id"], postgresql_where="status IN ('pending', 'running')"
    )
    op.create_index(
        "ix_job_chunks_ready",
        "job_chunks",
        ["job_id", sa.text("priority DESC"), "id"],
        postgresql_where="status = 'pending' AND queued_at IS NULL",
    )
    op.create_index(
        "ix_job_chunks_live",
        "job_chunks",
        ["job_id"],
        postgresql_where="status = 'processing' OR (status = 'pending' AND queued_at IS NOT NULL)",
    )
    op.create_index("ix_credit_transactions_job_id", "credit_transactions", ["job_id"])
    op.create_index(
        "ix_credit_transactions_chunk_id",
        "credit_transactions",
        ["chunk_id"],
        postgresql_where="chunk_id IS NOT NULL",
    )
    op.create_index(
        "uq_credit_transactions_open_hold",
        "credit_transactions",
        ["chunk_id"],
        unique=True,
        postgresql_where="type = 'usage' AND status = 'pending'",
    )


def drop_indexes_of_kept_columns() -> None:
    """The other indexes and unique keys go with the columns that they hold."""
    for index in ("ix_job_chunks_live", "ix_job_chunks_ready"):
        op.drop_index(index, "job_chunks")
    op.drop_index("ix_crawl_jobs_live", "crawl_jobs")


def create_failures() -> None:
    op.create_table(
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
    op.create_table(
        "workers",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(20), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
        sa.CheckConstraint("slots >= 0", name=op.f("ck_workers_slots")),
    )
