"""What keeps work at any size quick: the claim ranks jobs without looking at their chunks, reports and blocks
read open holds, top-ups and billing notifications by indexes of their own.
"""

import sqlalchemy as sa

from alembic import op
from models import ddl

revision = "008"
down_revision = "007"
branch_labels = None
depends_on = None

READY = (
    "{0}status = 'pending' AND {0}queued_at IS NULL AND {0}available_at IS NULL AND {0}candidates IS NOT NULL"
)
NEW, OLD = READY.format("NEW."), READY.format("OLD.")
MEANING = "Priority of its best ready chunk, or higher; NULL: none is ready. Kept by a trigger"
RAISE_READY_PRIORITY = """
CREATE FUNCTION raise_ready_priority() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The lock first, and the look at the row after it: somebody may be lowering it.
    PERFORM FROM crawl_jobs WHERE id = NEW.job_id FOR NO KEY UPDATE;
    UPDATE crawl_jobs SET ready_priority = NEW.priority
    WHERE id = NEW.job_id AND (ready_priority IS NULL OR ready_priority < NEW.priority);
    RETURN NULL;
END $$
"""
# Name, event, condition.
TRIGGERS = (
    ("raise_ready_priority_inserted", "INSERT", NEW),
    ("raise_ready_priority_updated", "UPDATE", f"{NEW} AND (NEW.priority > OLD.priority OR NOT ({OLD}))"),
)
OPEN_HOLD = "type = 'usage' AND status = 'pending'"
# Name, table, columns, condition.
INDEXES = (
    (
        "ix_job_chunks_parked",
        "job_chunks",
        ["available_at"],
        "status = 'pending' AND available_at IS NOT NULL",
    ),
    ("ix_credit_transactions_held_by_job", "credit_transactions", ["job_id"], OPEN_HOLD),
    ("ix_credit_transactions_held_by_account", "credit_transactions", ["account_id"], OPEN_HOLD),
    (
        "ix_credit_transactions_top_up",
        "credit_transactions",
        ["user_id", "settled_at"],
        "type IN ('purchase', 'bonus') AND status = 'completed'",
    ),
    (
        "ix_notifications_billed_job",
        "notifications",
        ["(metadata ->> 'job_id')"],
        "category = 'billing'",
    ),
)


def upgrade() -> None:
    for index in INDEXES:
        create_index(*index)
    replace_ready_index(READY.format(""))
    ddl.add_columns("crawl_jobs", [sa.Column("ready_priority", sa.SmallInteger())])
    ddl.execute("crawl_jobs", f"COMMENT ON COLUMN crawl_jobs.ready_priority IS '{MEANING}'")
    op.execute(RAISE_READY_PRIORITY.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    for name, event, condition in TRIGGERS:
        ddl.execute(
            "job_chunks",
            f"CREATE OR REPLACE TRIGGER {name} AFTER {event} ON job_chunks FOR EACH ROW "
            f"WHEN ({condition}) EXECUTE FUNCTION raise_ready_priority()",
        )
    # The triggers are there: whatever becomes ready from now on is known.
    best = f"SELECT max(c.priority) FROM job_chunks c WHERE c.job_id = crawl_jobs.id AND {READY.format('c.')}"
    ddl.update("crawl_jobs", f"ready_priority = ({best})", f"ready_priority IS NULL AND ({best}) IS NOT NULL")


def downgrade() -> None:
    for name, _event, _condition in TRIGGERS:
        ddl.execute("job_chunks", f"DROP TRIGGER IF EXISTS {name} ON job_chunks")
    op.execute("DROP FUNCTION IF EXISTS raise_ready_priority()")
    ddl.drop_columns("crawl_jobs", ["ready_priority"])
    replace_ready_index("status = 'pending' AND queued_at IS NULL")
    for name, table, _columns, _condition in reversed(INDEXES):
        ddl.drop_index(name, table)


def create_index(name: str, table: str, columns: list[str], condition: str) -> None:
    ddl.create_index(name, table, columns, where=condition)


def replace_ready_index(condition: str) -> None:
    """The claim has one of the two at any moment."""
    columns = ["job_id", "priority DESC", "id"]
    ddl.create_index("ix_job_chunks_ready_next", "job_chunks", columns, where=condition)
    ddl.drop_index("ix_job_chunks_ready", "job_chunks")
    ddl.execute("job_chunks", "ALTER INDEX IF EXISTS ix_job_chunks_ready_next RENAME TO ix_job_chunks_ready")
