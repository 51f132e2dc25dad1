"""Every foreign key and every performance index of the base tables.

Rows whose parent does not exist stop it before anything is changed, and are listed.
"""

import sqlalchemy as sa
from alembic.util import CommandError

from alembic import context, op

revision = "003"
down_revision = "002"
branch_labels = None
depends_on = None

# Child table, its column, and the table whose id it holds.
FOREIGN_KEYS = (
    ("projects", "user_id", "profiles"),
    ("crawl_jobs", "project_id", "projects"),
    ("images", "crawl_job_id", "crawl_jobs"),
    ("job_chunks", "job_id", "crawl_jobs"),
    ("activity_logs", "user_id", "profiles"),
    ("credit_accounts", "user_id", "profiles"),
    ("credit_transactions", "account_id", "credit_accounts"),
    ("credit_transactions", "user_id", "profiles"),
    ("api_keys", "user_id", "profiles"),
    ("notifications", "user_id", "profiles"),
    ("notification_preferences", "user_id", "profiles"),
    ("usage_metrics", "user_id", "profiles"),
)

# Unique keys that begin with a foreign key's column (credit_accounts, notification_preferences) are its index.
INDEXES = (
    ("profiles", "user_tier"),
    ("projects", "user_id"),
    ("crawl_jobs", "project_id"),
    ("crawl_jobs", "status"),
    ("crawl_jobs", "project_id", "status"),
    ("images", "crawl_job_id"),
    ("job_chunks", "job_id"),
    ("job_chunks", "status"),
    ("job_chunks", "job_id", "status"),
    ("job_chunks", "priority", "created_at"),
    ("job_chunks", "task_id"),
    ("activity_logs", "user_id"),
    ("activity_logs", "user_id", "timestamp"),
    ("activity_logs", "resource_type", "resource_id"),
    ("credit_transactions", "account_id"),
    ("credit_transactions", "user_id"),
    ("credit_transactions", "user_id", "created_at"),
    ("api_keys", "user_id"),
    ("notifications", "user_id"),
    ("notifications", "user_id", "is_read"),
    ("notifications", "user_id", "created_at"),
    ("usage_metrics", "user_id"),
)

REFUSAL = (
    "Revision 003 adds foreign keys, and these rows name a parent that does not exist. "
    "Nothing was changed: repair or delete them, then run it again."
)


def upgrade() -> None:
    refuse_orphans()
    for table, column, parent in FOREIGN_KEYS:
        op.create_foreign_key(
            foreign_key_name(table, column, parent), table, parent, [column], ["id"], ondelete="CASCADE"
        )
    for table, *columns in INDEXES:
        op.create_index(index_name(table, columns), table, columns)


def downgrade() -> None:
    for table, *columns in reversed(INDEXES):
        op.drop_index(index_name(table, columns), table)
    for table, column, parent in reversed(FOREIGN_KEYS):
        op.drop_constraint(foreign_key_name(table, column, parent), table, type_="foreignkey")


def foreign_key_name(table: str, column: str, parent: str) -> str:
    return op.f(f"fk_{table}_{column}_{parent}")


def index_name(table: str, columns: list[str]) -> str:
    return op.f(f"ix_{table}_{'_'.join(columns)}")


def orphans_of(table: str, column: str, parent: str) -> str:
    """SELECT of one line of text when ``table`` has orphans, else of none."""
    return (
        f"SELECT '{table}.{column} -> {parent}.id, rows: ' || count(*) || ', first ids: ' || "
        "array_to_string((array_agg(child.id ORDER BY child.id))[1:5], ', ') AS line "
        f"FROM {table} AS child WHERE child.{column} IS NOT NULL AND NOT EXISTS "
        f"(SELECT FROM {parent} AS parent WHERE parent.id = child.{column}) HAVING count(*) > 0"
    )


def refuse_orphans() -> None:
    """Stop with a list of the orphans. A script of SQL carries the same question to the server."""
    query = "\nUNION ALL ".join(orphans_of(*key) for key in FOREIGN_KEYS)
    if context.is_offline_mode():
        op.execute(f"""
DO $$
DECLARE
    orphans text := (SELECT string_agg(line, chr(10)) FROM ({query}) AS found);
BEGIN
    IF orphans IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = '{REFUSAL}' || chr(10) || orphans;
    END IF;
END $$""")
        return
    lines = op.get_bind().execute(sa.text(query)).scalars().all()
    if lines:
        raise CommandError("\n  ".join([REFUSAL, *lines]))
