"""The base tables of the shared schema with their unique keys and CHECKs, and without foreign keys."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op

revision = "001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_profiles()
    create_projects()
    create_crawl_jobs()
    create_images()
    create_activity_logs()
    create_credit_accounts()
    create_credit_transactions()
    create_notifications()
    create_notification_preferences()
    create_api_keys()
    create_usage_metrics()


def downgrade() -> None:
    op.execute(
        "DROP TABLE usage_metrics, api_keys, notification_preferences, notifications, credit_transactions, "
        "credit_accounts, activity_logs, images, crawl_jobs, projects, profiles"
    )


def required(name: str, kind: sa.types.TypeEngine[Any], default: str | None = None) -> sa.Column[Any]:
    """A NOT NULL column; ``default`` is SQL."""
    return sa.Column(name, kind, nullable=False, server_default=None if default is None else sa.text(default))


def optional(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    """A column that may be null."""
    return sa.Column(name, kind, nullable=True)


def moment(name: str, *, now: bool = True) -> sa.Column[Any]:
    """A timestamp with time zone: NOT NULL with the server's clock, or optional."""
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=not now, server_default=default)


def generated_uuid() -> sa.Column[Any]:
    """The id of a table whose ids come from elsewhere or are generated."""
    return required("id", sa.Uuid(), "gen_random_uuid()")


def primary_key(table: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}"))


def unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=op.f(f"uq_{table}_{'_'.join(columns)}"))


def check(table: str, name: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(rule, name=op.f(f"ck_{table}_{name}"))


def create_profiles() -> None:
    op.create_table(
        "profiles",
        generated_uuid(),
        required("email", sa.String(255)),
        optional("full_name", sa.String(100)),
        optional("avatar_url", sa.Text()),
        required("role", sa.String(20), "'user'"),
        moment("created_at"),
        moment("updated_at"),
        primary_key("profiles"),
        unique("profiles", "email"),
        check("profiles", "role", "role IN ('user', 'admin', 'moderator')"),
    )


def create_projects() -> None:
    op.create_table(
        "projects",
        required("id", sa.Integer()),
        required("name", sa.String(100)),
        optional("description", sa.Text()),
        required("user_id", sa.Uuid()),
        required("status", sa.String(20), "'active'"),
        moment("created_at"),
        moment("updated_at"),
        primary_key("projects"),
        check("projects", "status", "status IN ('active', 'archived', 'deleted')"),
    )


def create_crawl_jobs() -> None:
    op.create_table(
        "crawl_jobs",
        required("id", sa.Integer()),
        required("project_id", sa.Integer()),
        required("name", sa.String(100)),
        optional("keywords", JSONB()),
        required("max_images", sa.Integer(), "1000"),
        required("status", sa.String(20), "'pending'"),
        required("progress", sa.Integer(), "0"),
        required("total_images", sa.Integer(), "0"),
        required("downloaded_images", sa.Integer(), "0"),
        required("valid_images", sa.Integer(), "0"),
        required("total_chunks", sa.Integer(), "0"),
        required("active_chunks", sa.Integer(), "0"),
        required("completed_chunks", sa.Integer(), "0"),
        required("failed_chunks", sa.Integer(), "0"),
        required("task_ids", JSONB(), "'[]'::jsonb"),
        moment("started_at", now=False),
        moment("completed_at", now=False),
        moment("created_at"),
        moment("updated_at"),
        primary_key("crawl_jobs"),
        check("crawl_jobs", "status", "status IN ('pending', 'running', 'completed', 'failed', 'cancelled')"),
        check("crawl_jobs", "progress", "progress BETWEEN 0 AND 100"),
        check("crawl_jobs", "max_images", "max_images > 0"),
        check("crawl_jobs", "active_chunks", "active_chunks >= 0"),
        check("crawl_jobs", "chunks", "completed_chunks + failed_chunks <= total_chunks"),
        check(
            "crawl_jobs",
            "ended",
            "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)",
        ),
    )


def create_images() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        required("crawl_job_id", sa.Integer()),
        required("original_url", sa.Text()),
        required("filename", sa.String(255)),
        optional("storage_url", sa.Text()),
        optional("width", sa.Integer()),
        optional("height", sa.Integer()),
        optional("file_size", sa.Integer()),
        optional("format", sa.String(10)),
        moment("created_at"),
        moment("updated_at"),
        primary_key("images"),
    )


def create_activity_logs() -> None:
    op.create_table(
        "activity_logs",
        required("id", sa.Integer()),
        optional("user_id", sa.Uuid()),
        required("action", sa.Text()),
        optional("resource_type", sa.String(50)),
        optional("resource_id", sa.String(50)),
        optional("metadata", JSONB()),
        moment("timestamp"),
        primary_key("activity_logs"),
    )


def create_credit_accounts() -> None:
    op.create_table(
        "credit_accounts",
        generated_uuid(),
        required("user_id", sa.Uuid()),
        required("current_balance", sa.Integer(), "0"),
        required("monthly_usage", sa.Integer(), "0"),
        required("average_daily_usage", sa.Numeric(10, 2), "0"),
        required("auto_refill_enabled", sa.Boolean(), "false"),
        required("refill_threshold", sa.Integer(), "100"),
        required("refill_amount", sa.Integer(), "500"),
        required("monthly_limit", sa.Integer(), "2000"),
        moment("created_at"),
        moment("updated_at"),
        primary_key("credit_accounts"),
        unique("credit_accounts", "user_id"),
        check("credit_accounts", "current_balance", "current_balance >= 0"),
        check("credit_accounts", "monthly_usage", "monthly_usage >= 0"),
        check("credit_accounts", "refill_threshold", "refill_threshold > 0"),
        check("credit_accounts", "refill_amount", "refill_amount > 0"),
        check("credit_accounts", "monthly_limit", "monthly_limit > 0"),
    )


def create_credit_transactions() -> None:
    op.create_table(
        "credit_transactions",
        generated_uuid(),
        required("account_id", sa.Uuid()),
        required("user_id", sa.Uuid()),
        required("type", sa.String(20)),
        optional("description", sa.Text()),
        required("amount", sa.Integer()),
        required("balance_after", sa.Integer()),
        required("status", sa.String(20), "'completed'"),
        optional("metadata", JSONB()),
        moment("created_at"),
        primary_key("credit_transactions"),
        check("credit_transactions", "type", "type IN ('purchase', 'usage', 'refund', 'bonus')"),
        check("credit_transactions", "status", "status IN ('completed', 'pending', 'failed', 'cancelled')"),
        check("credit_transactions", "usage_amount", "type <> 'usage' OR amount <= 0"),
    )


def create_notifications() -> None:
    op.create_table(
        "notifications",
        required("id", sa.Integer()),
        required("user_id", sa.Uuid()),
        required("title", sa.String(255)),
        required("message", sa.Text()),
        required("type", sa.String(50), "'info'"),
        optional("category", sa.String(50)),
        optional("icon", sa.String(50)),
        optional("color", sa.String(20)),
        optional("action_url", sa.Text()),
        optional("action_label", sa.String(100)),
        required("is_read", sa.Boolean(), "false"),
        moment("read_at", now=False),
        optional("metadata", JSONB()),
        moment("created_at"),
        primary_key("notifications"),
        check("notifications", "type", "type IN ('success', 'info', 'warning', 'error')"),
        check("notifications", "read", "is_read = (read_at IS NOT NULL)"),
    )


def create_notification_preferences() -> None:
    table = "notification_preferences"
    op.create_table(
        table,
        generated_uuid(),
        required("user_id", sa.Uuid()),
        required("email_enabled", sa.Boolean(), "true"),
        required("push_enabled", sa.Boolean(), "false"),
        required("sms_enabled", sa.Boolean(), "false"),
        required("crawl_jobs_enabled", sa.Boolean(), "true"),
        required("datasets_enabled", sa.Boolean(), "true"),
        required("billing_enabled", sa.Boolean(), "true"),
        required("security_enabled", sa.Boolean(), "true"),
        required("marketing_enabled", sa.Boolean(), "false"),
        required("product_updates_enabled", sa.Boolean(), "true"),
        required("digest_frequency", sa.String(20), "'daily'"),
        optional("quiet_hours_start", sa.Time()),
        optional("quiet_hours_end", sa.Time()),
        moment("created_at"),
        moment("updated_at"),
        primary_key(table),
        unique(table, "user_id"),
        check(table, "digest_frequency", "digest_frequency IN ('realtime', 'daily', 'weekly', 'never')"),
    )


def create_api_keys() -> None:
    op.create_table(
        "api_keys",
        generated_uuid(),
        required("user_id", sa.Uuid()),
        required("name", sa.String(200)),
        required("key_hash", sa.String(255)),
        required("key_prefix", sa.String(20)),
        required("status", sa.String(20), "'active'"),
        required("permissions", JSONB(), "'[]'::jsonb"),
        required("rate_limit", sa.Integer(), "1000"),
        required("usage_count", sa.Integer(), "0"),
        moment("last_used_at", now=False),
        optional("last_used_ip", sa.String(45)),
        moment("expires_at", now=False),
        moment("created_at"),
        moment("updated_at"),
        primary_key("api_keys"),
        unique("api_keys", "key_hash"),
        check("api_keys", "status", "status IN ('active', 'revoked', 'expired')"),
    )


def create_usage_metrics() -> None:
    op.create_table(
        "usage_metrics",
        generated_uuid(),
        required("user_id", sa.Uuid()),
        required("metric_date", sa.Date()),
        required("images_processed", sa.Integer(), "0"),
        required("images_limit", sa.Integer(), "10000"),
        required("storage_used_gb", sa.Numeric(10, 2), "0"),
        required("storage_limit_gb", sa.Numeric(10, 2), "100"),
        required("api_calls", sa.Integer(), "0"),
        required("api_calls_limit", sa.Integer(), "50000"),
        required("bandwidth_used_gb", sa.Numeric(10, 2), "0"),
        required("bandwidth_limit_gb", sa.Numeric(10, 2), "500"),
        moment("created_at"),
        primary_key("usage_metrics"),
        unique("usage_metrics", "user_id", "metric_date"),
        check("usage_metrics", "images_processed", "images_processed >= 0"),
    )
