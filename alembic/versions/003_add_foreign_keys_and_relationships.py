"""Every foreign key and every performance index of the base tables.

Rows whose parent does not exist stop it before anything is changed, and are listed.
"""

from models import ddl
from models.orphans import Reference, lines

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
    "Nothing was changed: repair or delete them (`pixtrawl db orphans` lists them), then run it again."
)


def upgrade() -> None:
    """Indexes first: with a foreign key and without its index, each delete of a parent reads the whole child."""
    ddl.refuse(REFUSAL, lines([Reference(*key) for key in FOREIGN_KEYS]))
    for table, *columns in INDEXES:
        ddl.create_index(index_name(table, columns), table, columns)
    for table, column, parent in FOREIGN_KEYS:
        ddl.add_foreign_key(table, column, parent)


def downgrade() -> None:
    for table, column, parent in reversed(FOREIGN_KEYS):
        ddl.drop_constraint(table, f"fk_{table}_{column}_{parent}")
    for table, *columns in reversed(INDEXES):
        ddl.drop_index(index_name(table, columns), table)


def index_name(table: str, columns: list[str]) -> str:
    return f"ix_{table}_{'_'.join(columns)}"
