"""What must always be true of accounts, jobs and chunks, as queries: models/audit.py walks them.

Each takes a page, ``:accounts`` or ``:jobs``, and yields (rule, user_id, job_id, chunk_id, expected, found) row by
row. What it compares is always written by one transaction, so its own snapshot is enough, whoever writes meanwhile.
"""

SPENT = "t.type = 'usage' AND t.status = 'completed'"
HELD = "t.type = 'usage' AND t.status = 'pending'"

ACCOUNTS = """
account AS MATERIALIZED (
    SELECT * FROM credit_accounts WHERE id = ANY(CAST(:accounts AS uuid[])) AND closing_at IS NULL)
"""
"""An account that is being deleted has lost transactions already, and explains nothing."""
JOBS = """
job AS MATERIALIZED (
    SELECT j.*, p.user_id FROM crawl_jobs j JOIN projects p ON p.id = j.project_id
    WHERE j.id = ANY(CAST(:jobs AS int[])) AND j.source_kind IS NOT NULL AND j.deleting_at IS NULL AND NOT EXISTS (
        SELECT FROM credit_accounts a WHERE a.user_id = p.user_id AND a.closing_at IS NOT NULL)),
chunk AS MATERIALIZED (
    SELECT c.id, c.job_id, c.status, c.size, c.accepted, c.failed, job.user_id, job.unit_price
    FROM job JOIN job_chunks c ON c.job_id = job.id)
"""
"""Jobs without a source are other services', which count as they like; one that is being deleted, alone or with its
user, has lost rows already.
"""

OF_ACCOUNTS = (
    # The balance is the sum of its transactions.
    f"""
    SELECT 'balance of an account', a.user_id, NULL, NULL, coalesce(s.total, 0), a.current_balance
    FROM account a CROSS JOIN LATERAL (
        SELECT sum(t.amount) AS total FROM credit_transactions t
        WHERE t.account_id = a.id AND (t.status = 'completed' OR ({HELD}))) s""",
    # The month's usage is what was charged or is held in its period; before the first hold it is another service's.
    """
    SELECT 'usage of the month', a.user_id, NULL, NULL, coalesce(s.total, 0), a.monthly_usage
    FROM account a CROSS JOIN LATERAL (
        SELECT -sum(t.amount) AS total FROM credit_transactions t
        WHERE t.account_id = a.id AND t.type = 'usage' AND t.status IN ('completed', 'pending')
            AND t.period = a.usage_period) s
    WHERE a.usage_period <> ''""",
    # A hold belongs to a chunk that has not ended; one of a deleted chunk would never come back.
    f"""
    SELECT 'hold without a live chunk', a.user_id, t.job_id, t.chunk_id, 0, -t.amount
    FROM account a JOIN credit_transactions t ON t.account_id = a.id AND {HELD}
        LEFT JOIN job_chunks c ON c.id = t.chunk_id
    WHERE t.chunk_id IS NOT NULL AND (c.id IS NULL OR c.status NOT IN ('pending', 'processing'))""",
    # What is given back of a job was charged for it before.
    f"""
    SELECT 'refunds of a job', a.user_id, r.job_id, NULL, least(r.refunded, c.charged), r.refunded
    FROM account a CROSS JOIN LATERAL (
        SELECT t.job_id, sum(t.amount) AS refunded FROM credit_transactions t
        WHERE t.account_id = a.id AND t.type = 'refund' AND t.status = 'completed' AND t.job_id IS NOT NULL
        GROUP BY t.job_id) r
    CROSS JOIN LATERAL (
        SELECT coalesce(-sum(t.amount), 0) AS charged FROM credit_transactions t
        WHERE t.job_id = r.job_id AND t.account_id = a.id AND {SPENT}) c""",
)
OF_JOBS = (
    # An ended chunk was charged for every image and for nothing else; a live one for no more than it has.
    f"""
    SELECT 'charge of a chunk', c.user_id, c.job_id, c.id,
        CASE WHEN c.status IN ('completed', 'failed') THEN c.accepted * CAST(c.unit_price AS bigint)
            ELSE least(s.charged, c.accepted * CAST(c.unit_price AS bigint)) END, s.charged
    FROM chunk c CROSS JOIN LATERAL (
        SELECT coalesce(-sum(t.amount), 0) AS charged FROM credit_transactions t
        WHERE t.chunk_id = c.id AND {SPENT}) s""",
    # One open hold for a chunk in flight, none for one that ended.
    f"""
    SELECT 'open holds of a chunk', c.user_id, c.job_id, c.id,
        CASE WHEN c.status = 'processing' THEN 1 WHEN c.status = 'pending' THEN h.holds ELSE 0 END, h.holds
    FROM chunk c CROSS JOIN LATERAL (
        SELECT count(*) AS holds FROM credit_transactions t WHERE t.chunk_id = c.id AND {HELD}) h""",
    """
    SELECT 'images of a chunk', c.user_id, c.job_id, c.id, coalesce(i.images, 0), c.accepted
    FROM chunk c LEFT JOIN (
        SELECT chunk_id, count(*) AS images FROM images
        WHERE crawl_job_id = ANY(ARRAY(SELECT id FROM job)) GROUP BY chunk_id) i ON i.chunk_id = c.id""",
    """
    SELECT 'failures of a chunk', c.user_id, c.job_id, c.id, coalesce(f.failures, 0), c.failed
    FROM chunk c LEFT JOIN (
        SELECT chunk_id, sum(position_end - position + 1) AS failures FROM failures
        WHERE job_id = ANY(ARRAY(SELECT id FROM job)) GROUP BY chunk_id) f ON f.chunk_id = c.id""",
    """
    SELECT 'outcomes of an ended chunk', user_id, job_id, id, size, accepted + failed
    FROM chunk WHERE status IN ('completed', 'failed')""",
    # A job's counters against its chunks.
    """
    SELECT figure.rule, job.user_id, job.id, NULL, figure.expected, figure.found
    FROM job LEFT JOIN (
        SELECT job_id, count(*) AS chunks, sum(accepted) AS accepted,
            count(*) FILTER (WHERE status = 'processing') AS active,
            count(*) FILTER (WHERE status = 'completed') AS completed,
            count(*) FILTER (WHERE status = 'failed') AS failed FROM chunk GROUP BY job_id) c ON c.job_id = job.id
    CROSS JOIN LATERAL (VALUES
        ('chunks of a job', coalesce(c.chunks, 0), job.total_chunks),
        ('images of a job, by its chunks', coalesce(c.accepted, 0), job.valid_images),
        ('processing chunks of a job', coalesce(c.active, 0), job.active_chunks),
        ('completed chunks of a job', coalesce(c.completed, 0), job.completed_chunks),
        ('failed chunks of a job', coalesce(c.failed, 0), job.failed_chunks)) AS figure (rule, expected, found)""",
    # And against its rows.
    """
    SELECT figure.rule, job.user_id, job.id, NULL, figure.expected, figure.found
    FROM job LEFT JOIN (
        SELECT crawl_job_id, count(*) AS images, sum(file_size) AS bytes FROM images
        WHERE crawl_job_id = ANY(ARRAY(SELECT id FROM job)) GROUP BY crawl_job_id) i ON i.crawl_job_id = job.id
    CROSS JOIN LATERAL (VALUES
        ('images of a job', coalesce(i.images, 0), CAST(job.valid_images AS bigint)),
        ('stored bytes of a job', coalesce(i.bytes, 0), job.stored_bytes)) AS figure (rule, expected, found)""",
    """
    SELECT 'failures of a job, ' || coalesce(f.reason, c.reason), job.user_id, job.id, NULL,
        coalesce(f.failures, 0), coalesce(c.failures, 0)
    FROM (
        SELECT job_id, reason, sum(position_end - position + 1) AS failures FROM failures
        WHERE job_id = ANY(ARRAY(SELECT id FROM job)) GROUP BY job_id, reason) f
    FULL JOIN (
        SELECT job.id AS job_id, counted.key AS reason, CAST(counted.value AS bigint) AS failures
        FROM job CROSS JOIN LATERAL jsonb_each_text(job.failures) counted) c
        ON c.job_id = f.job_id AND c.reason = f.reason
    JOIN job ON job.id = coalesce(f.job_id, c.job_id)""",
    """
    SELECT 'failures of a job', job.user_id, job.id, NULL, coalesce(c.failures, 0), job.failed_images
    FROM job CROSS JOIN LATERAL (
        SELECT sum(CAST(value AS bigint)) AS failures FROM jsonb_each_text(job.failures)) c""",
    # One outcome for each candidate: no image inside a failure's range, no two ranges that overlap.
    """
    SELECT 'candidates with two outcomes', job.user_id, job.id, NULL, 0, twice.images + twice.failures
    FROM job CROSS JOIN LATERAL (SELECT (
        SELECT count(*) FROM failures f JOIN images i ON i.crawl_job_id = f.job_id
            AND i.position BETWEEN f.position AND f.position_end WHERE f.job_id = job.id) AS images, (
        SELECT count(*) FROM (
            SELECT position, max(position_end) OVER (
                ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM failures f WHERE f.job_id = job.id) ranges
        WHERE position <= before) AS failures) twice""",
    """
    SELECT 'outcomes of an ended job', user_id, id, NULL, total_images, valid_images + failed_images
    FROM job WHERE completed_at IS NOT NULL""",
)
