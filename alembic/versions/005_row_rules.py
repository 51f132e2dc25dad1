"""Rules of rows: ``updated_at`` moves on every update, the ledger is kept, GB follow bytes, a lease ties a chunk.

Whoever writes: the rules stand in triggers and CHECKs.
"""

import sqlalchemy as sa

from alembic import op
from models import ddl

revision = "005"
down_revision = "004"
branch_labels = None
depends_on = None

TOUCHED = (
    "api_keys",
    "crawl_jobs",
    "credit_accounts",
    "images",
    "job_chunks",
    "notification_preferences",
    "profiles",
    "projects",
)
TOUCH_UPDATED_AT = """
CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Strictly later, also for a second update in one transaction and when the clock was set back.
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    RETURN NEW;
END $$
"""
KEEP_LEDGER = """
CREATE FUNCTION keep_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE restrict_violation USING MESSAGE = 'the ledger is never emptied',
            HINT = 'An account takes its transactions with it: pixtrawl users delete EMAIL';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF OLD.status = 'pending' AND (NEW.status <> 'pending' OR NEW.amount = OLD.amount)
            AND ROW(NEW.id, NEW.account_id, NEW.user_id, NEW.type, NEW.job_id, NEW.chunk_id, NEW.held,
                NEW.unit_price, NEW.period, NEW.created_at)
            IS NOT DISTINCT FROM ROW(OLD.id, OLD.account_id, OLD.user_id, OLD.type, OLD.job_id, OLD.chunk_id,
                OLD.held, OLD.unit_price, OLD.period, OLD.created_at)
        THEN
            RETURN NEW;
        END IF;
    -- First what is true for a million rows in a row: the account is being deleted in batches.
    ELSIF OLD.account_id::text = current_setting('pixtrawl.closing_account', true)
        AND EXISTS (SELECT FROM credit_accounts WHERE id = OLD.account_id AND closing_at IS NOT NULL)
    THEN
        RETURN OLD;
    -- A cascade has deleted the parent already; that tells it from a DELETE of the transaction itself.
    ELSIF NOT EXISTS (SELECT FROM credit_accounts WHERE id = OLD.account_id)
        OR NOT EXISTS (SELECT FROM profiles WHERE id = OLD.user_id)
    THEN
        RETURN OLD;
    END IF;
    RAISE restrict_violation USING
        MESSAGE = format('credit transaction %s is %s and part of the ledger: %s refused',
            OLD.id, OLD.status, TG_OP),
        HINT = 'A pending transaction may end; what has ended is corrected by a new transaction.';
END $$
"""
DERIVE_USAGE_GB = """
CREATE FUNCTION derive_usage_gb() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A writer that knows only the GB columns (10^9 bytes) adds what it adds there to the bytes.
    IF TG_OP = 'INSERT' THEN
        IF NEW.storage_used_bytes = 0 THEN
            NEW.storage_used_bytes := greatest(NEW.storage_used_gb, 0) * 1000000000;
        END IF;
        IF NEW.bandwidth_used_bytes = 0 THEN
            NEW.bandwidth_used_bytes := greatest(NEW.bandwidth_used_gb, 0) * 1000000000;
        END IF;
    ELSE
        IF NEW.storage_used_bytes = OLD.storage_used_bytes THEN
            NEW.storage_used_bytes := greatest(0, OLD.storage_used_bytes
                + (NEW.storage_used_gb - OLD.storage_used_gb) * 1000000000);
        END IF;
        IF NEW.bandwidth_used_bytes = OLD.bandwidth_used_bytes THEN
            NEW.bandwidth_used_bytes := greatest(0, OLD.bandwidth_used_bytes
                + (NEW.bandwidth_used_gb - OLD.bandwidth_used_gb) * 1000000000);
        END IF;
    END IF;
    NEW.storage_used_gb := round(NEW.storage_used_bytes / 1000000000.0, 2);
    NEW.bandwidth_used_gb := round(NEW.bandwidth_used_bytes / 1000000000.0, 2);
    RETURN NEW;
END $$
"""

FUNCTIONS = {
    "touch_updated_at": TOUCH_UPDATED_AT,
    "keep_ledger": KEEP_LEDGER,
    "derive_usage_gb": DERIVE_USAGE_GB,
}
# Name, event, table, for each, function.
TRIGGERS = (
    ("keep_ledger", "BEFORE UPDATE OR DELETE", "credit_transactions", "ROW", "keep_ledger"),
    ("keep_ledger_whole", "BEFORE TRUNCATE", "credit_transactions", "STATEMENT", "keep_ledger"),
    ("derive_usage_gb", "BEFORE INSERT OR UPDATE", "usage_metrics", "ROW", "derive_usage_gb"),
    *(("touch_updated_at", "BEFORE UPDATE", table, "ROW", "touch_updated_at") for table in TOUCHED),
)
CHECKS = {
    "leased": "(status = 'processing') = (lease_until IS NOT NULL)",
    "lease_holder": "(lease_until IS NULL) = (worker IS NULL)",
}


def upgrade() -> None:
    ddl.add_columns("credit_accounts", [sa.Column("closing_at", sa.DateTime(timezone=True))])
    # A chunk that another service runs gets a lease without end, which no rescue takes.
    ddl.update(
        "job_chunks",
        "lease_until = coalesce(lease_until, 'infinity'), worker = coalesce(worker, 'another service')",
        "status = 'processing' AND (lease_until IS NULL OR worker IS NULL)",
    )
    ddl.add_checks("job_chunks", CHECKS)
    ddl.drop_check("job_chunks", "idle_without_lease")
    for function in FUNCTIONS.values():
        op.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    for name, moment, table, each, function in TRIGGERS:
        ddl.execute(
            table,
            f"CREATE OR REPLACE TRIGGER {name} {moment} ON {table} FOR EACH {each} EXECUTE FUNCTION {function}()",
        )


def downgrade() -> None:
    for name, _moment, table, _each, _function in reversed(TRIGGERS):
        ddl.execute(table, f"DROP TRIGGER IF EXISTS {name} ON {table}")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION IF EXISTS {function}()")
    rule = "status = 'processing' OR (lease_until IS NULL AND worker IS NULL)"
    ddl.add_check("job_chunks", "idle_without_lease", rule)
    for name in CHECKS:
        ddl.drop_check("job_chunks", name)
    ddl.drop_columns("credit_accounts", ["closing_at"])
