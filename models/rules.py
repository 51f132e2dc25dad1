"""Rules of rows that no CHECK can hold: triggers, which bind every writer of the shared database.

They never let a service through that merely forgot: ``updated_at`` moves, the ledger stays, GB follow bytes,
deleted chunks return what was held for them.
"""

from sqlalchemy import DDL, event

from models.base import Base

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

FUNCTIONS = (TOUCH_UPDATED_AT, KEEP_LEDGER, DERIVE_USAGE_GB, SETTLE_DELETED_CHUNKS, REOPEN_JOB)
TRIGGERS = (
    # Function, event, table, for each.
    ("keep_ledger", "BEFORE UPDATE OR DELETE", "credit_transactions", "ROW"),
    ("keep_ledger", "BEFORE TRUNCATE", "credit_transactions", "STATEMENT"),
    ("derive_usage_gb", "BEFORE INSERT OR UPDATE", "usage_metrics", "ROW"),
    # A statement's chunks together: all are locked before the account is.
    ("settle_deleted_chunks", "AFTER DELETE", "job_chunks REFERENCING OLD TABLE AS deleted", "STATEMENT"),
    ("settle_deleted_chunks", "BEFORE TRUNCATE", "job_chunks", "STATEMENT"),
    ("reopen_job", "BEFORE UPDATE OF completed_at", "crawl_jobs", "ROW"),
)


def declare_rules() -> None:
    """Make ``Base.metadata.create_all`` create them, behind the tables. Called once, when all are declared."""
    touched = [table.name for table in Base.metadata.sorted_tables if "updated_at" in table.columns]
    triggers = [*TRIGGERS, *(("touch_updated_at", "BEFORE UPDATE", table, "ROW") for table in touched)]
    statements = [
        f"CREATE TRIGGER {function}{'_whole' if 'TRUNCATE' in moment else ''} {moment} ON {table} "
        f"FOR EACH {each} EXECUTE FUNCTION {function}()"
        for function, moment, table, each in triggers
    ]
    for statement in (*FUNCTIONS, *statements):
        declared = DDL(statement.replace("%", "%%"))  # type: ignore[no-untyped-call]
        event.listen(Base.metadata, "after_create", declared)
