"""Deleting while others work, and sweeping: deleted chunks return what was held; which jobs are being deleted or
were swept; an ended job is not reopened while somebody sweeps its folder.
"""

import sqlalchemy as sa

from alembic import op
from models import ddl

revision = "011"
down_revision = "010"
branch_labels = None
depends_on = None

SETTLE_DELETED_CHUNKS = """
CREATE FUNCTION settle_deleted_chunks() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    images int[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        SELECT array_agg(c.id), array_agg(c.accepted) INTO ids, images
        FROM credit_transactions t JOIN job_chunks c ON c.id = t.chunk_id
        WHERE t.type = 'usage' AND t.status = 'pending';
    ELSE
        SELECT array_agg(id), array_agg(accepted) INTO ids, images FROM deleted;
    END IF;
    -- As models/credits.py settles; but no deletion fails over a hold that is too small: then it is charged whole.
    -- Arrays and no joins: statistics know nothing of open holds, which are few, and hardly any chunk here has one.
    WITH open_hold AS (
        SELECT t.id, t.account_id, t.chunk_id, t.period, -t.amount AS held,
            least(-t.amount, greatest(0, images[array_position(ids, t.chunk_id)] * coalesce(t.unit_price, 0)
                + coalesce((SELECT sum(amount) FROM credit_transactions
                    WHERE chunk_id = t.chunk_id AND type = 'usage' AND status = 'completed'), 0))) AS charge
        FROM credit_transactions t WHERE t.chunk_id = ANY(ids) AND t.type = 'usage' AND t.status = 'pending'),
    rest AS (
        SELECT account_id, sum(credits) AS credits, jsonb_object_agg(period, credits) AS of_period
        FROM (SELECT account_id, coalesce(period, '') AS period, sum(held - charge) AS credits
            FROM open_hold GROUP BY account_id, 2) AS months
        GROUP BY account_id),
    account AS (
        UPDATE credit_accounts a SET current_balance = a.current_balance + rest.credits,
            monthly_usage = greatest(0, a.monthly_usage - coalesce(CAST(rest.of_period->>a.usage_period AS int), 0))
        FROM rest WHERE a.id = rest.account_id
        RETURNING a.id, a.current_balance)
    UPDATE credit_transactions t SET
        status = CASE WHEN h.charge = 0 THEN 'cancelled' ELSE 'completed' END,
        amount = CASE WHEN h.charge = 0 THEN t.amount ELSE -h.charge END,
        balance_after = h.balance, settled_at = now()
    FROM (
        SELECT h.id, h.charge, account.current_balance - coalesce(sum(h.held - h.charge) OVER (
            PARTITION BY h.account_id ORDER BY h.chunk_id
            ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 0) AS balance
        FROM open_hold h JOIN account ON account.id = h.account_id) h
    WHERE t.id = h.id;
    RETURN NULL;
END $$
"""
SWEEP_LOCK = 0x73776570  # "swep"
REOPEN_JOB = f"""
CREATE FUNCTION reopen_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.completed_at IS NOT NULL AND NEW.completed_at IS NULL THEN
        IF OLD.deleting_at IS NOT NULL THEN
            RAISE restrict_violation USING MESSAGE = format('job %s is being deleted', OLD.id),
                HINT = format('`pixtrawl delete %s` completes that.', OLD.id);
        END IF;
        -- Who deletes objects that no row of an ended job names has this lock meanwhile: a page takes a moment.
        PERFORM pg_advisory_xact_lock({SWEEP_LOCK}, OLD.id);
    END IF;
    RETURN NEW;
END $$
"""

FUNCTIONS = {"settle_deleted_chunks": SETTLE_DELETED_CHUNKS, "reopen_job": REOPEN_JOB}
# Name, event, table, for each, function.
TRIGGERS = (
    (
        "settle_deleted_chunks",
        "AFTER DELETE",
        "job_chunks",
        "REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT",
        "settle_deleted_chunks",
    ),
    (
        "settle_deleted_chunks_whole",
        "BEFORE TRUNCATE",
        "job_chunks",
        "FOR EACH STATEMENT",
        "settle_deleted_chunks",
    ),
    ("reopen_job", "BEFORE UPDATE OF completed_at", "crawl_jobs", "FOR EACH ROW", "reopen_job"),
)
COLUMNS = {
    "swept_at": "When objects that no row of it names were last looked for after an end; NULL: not yet",
    "deleting_at": "Since when it is being deleted in batches, for good; NULL: it is not",
}
UNSWEPT = (
    "completed_at IS NOT NULL AND source_kind IS NOT NULL AND (swept_at IS NULL OR swept_at < completed_at)"
)
# Name, columns, condition.
INDEXES = (
    ("ix_crawl_jobs_unswept", ["completed_at"], UNSWEPT),
    ("ix_crawl_jobs_input", ["(source ->> 'object')"], "source_kind IS NOT NULL"),
)


def upgrade() -> None:
    ddl.add_columns("crawl_jobs", [sa.Column(name, sa.DateTime(timezone=True)) for name in COLUMNS])
    for name, meaning in COLUMNS.items():
        ddl.execute("crawl_jobs", f"COMMENT ON COLUMN crawl_jobs.{name} IS '{meaning}'")
    for name, columns, condition in INDEXES:
        ddl.create_index(name, "crawl_jobs", columns, where=condition)
    for function in FUNCTIONS.values():
        op.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    for name, moment, table, each, function in TRIGGERS:
        ddl.execute(
            table,
            f"CREATE OR REPLACE TRIGGER {name} {moment} ON {table} {each} EXECUTE FUNCTION {function}()",
        )


def downgrade() -> None:
    for name, _moment, table, _each, _function in reversed(TRIGGERS):
        ddl.execute(table, f"DROP TRIGGER IF EXISTS {name} ON {table}")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION IF EXISTS {function}()")
    for name, _columns, _condition in reversed(INDEXES):
        ddl.drop_index(name, "crawl_jobs")
    ddl.drop_columns("crawl_jobs", list(COLUMNS))
