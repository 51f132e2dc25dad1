"""Databases at an older revision: rows in every state that it knows, and the programs that bring it up."""

import subprocess
from collections.abc import Callable

from sqlalchemy import text

Run = Callable[..., subprocess.CompletedProcess[str]]
VERSION = text("SELECT version_num FROM alembic_version")
USER = "'00000000-0000-0000-0000-000000000001'"

# At each revision, rows in every state that it knows.
ROWS_AT_001 = f"""
INSERT INTO profiles (id, email, role) VALUES ({USER}, 'a@example.invalid', 'user'),
    (gen_random_uuid(), 'b@example.invalid', 'admin'), (gen_random_uuid(), 'c@example.invalid', 'moderator');
INSERT INTO projects (name, user_id, status)
    SELECT status, {USER}, status FROM unnest(ARRAY['active', 'archived', 'deleted']) status;
INSERT INTO crawl_jobs (project_id, name, keywords, status, valid_images, total_images, completed_at)
    SELECT 1, status, '["owl"]', status, 2, 2, CASE WHEN ended THEN timestamptz '2026-01-02' END
    FROM (VALUES ('completed', true), ('failed', true), ('cancelled', true), ('pending', false),
        ('running', false)) job (status, ended);
INSERT INTO images (crawl_job_id, original_url, filename)
    SELECT 1, 'http://a/' || n, n FROM generate_series(1, 2) n;
INSERT INTO activity_logs (user_id, action, metadata)
    VALUES ({USER}, 'login', '{{"ip": 1}}'), (NULL, 'start', NULL);
INSERT INTO credit_accounts (id, user_id, current_balance) VALUES ({USER}, {USER}, 90);
INSERT INTO credit_transactions (account_id, user_id, type, amount, balance_after, status)
    SELECT {USER}, {USER}, type, -10, 90, status
    FROM unnest(ARRAY['purchase', 'usage', 'refund', 'bonus']) type,
        unnest(ARRAY['completed', 'pending', 'failed', 'cancelled']) status;
INSERT INTO notifications (user_id, title, message, type, is_read, read_at)
    SELECT {USER}, 'Done', 'Two images', type, read, CASE WHEN read THEN timestamptz '2026-01-02' END
    FROM unnest(ARRAY['success', 'info', 'warning', 'error']) type, unnest(ARRAY[true, false]) read;
INSERT INTO notification_preferences (user_id, quiet_hours_start) VALUES ({USER}, '22:00');
INSERT INTO api_keys (user_id, name, key_hash, key_prefix, status)
    SELECT {USER}, 'k', status, 'p', status FROM unnest(ARRAY['active', 'revoked', 'expired']) status;
INSERT INTO usage_metrics (user_id, metric_date, storage_used_gb) VALUES ({USER}, '2026-01-01', 1.25);
"""
ROWS_AT = {
    "001": ROWS_AT_001,
    "002": f"""
UPDATE profiles SET user_tier = 'PRO' WHERE id = {USER};
INSERT INTO job_chunks (job_id, chunk_index, status, retry_count, error_message)
    SELECT 5, row_number() OVER (), status, 1, 'e'
    FROM unnest(ARRAY['pending', 'processing', 'completed', 'failed']) status""",
    "003": "DELETE FROM images WHERE id = 2; UPDATE profiles SET user_tier = 'ENTERPRISE'",
    "004": """
UPDATE images SET position = 0, sha256 = sha256('a'), chunk_id = 1;
INSERT INTO job_chunks (job_id, chunk_index, status, worker, lease_until, candidates)
    VALUES (5, 8, 'processing', 'w', now(), '\\x00');
INSERT INTO job_chunks (job_id, chunk_index, queued_at) VALUES (5, 9, now());
INSERT INTO failures (job_id, position, position_end, reason) VALUES (1, 1, 1, 'dns'), (1, 2, 9, 'not_needed');
INSERT INTO workers (name, slots, version) VALUES ('w', 2, '0.1')""",
    "005": "UPDATE credit_accounts SET closing_at = now(); UPDATE usage_metrics SET storage_used_bytes = 7",
    "012": """
INSERT INTO suspects (chunk_id, position, url, attempt) SELECT min(id), 0, 'u', 1 FROM job_chunks;
INSERT INTO leadership (scheduler) VALUES ('h/1')""",
    "013": """
INSERT INTO failures (job_id, position, position_end, reason, evidence)
    VALUES (1, 10, 10, 'robots', '{"rule": "robots.txt"}'), (1, 11, 11, 'opt_out', NULL);
UPDATE crawl_jobs SET ignored_opt_outs = '["robots", "tdm"]' WHERE id = 1""",
    "014": """
UPDATE images SET http_status = 200, attempts = 2, elapsed_ms = 7;
UPDATE failures SET attempts = 3, elapsed_ms = 9""",
    "015": "UPDATE crawl_jobs SET verification = 'header'",
    "017": """
INSERT INTO seen_keys (job_id, key, position) VALUES (5, '\\x00112233445566778899aabbccddeeff', 0);
UPDATE images SET metadata = '{"caption": "An owl"}', licence = 'CC0';
UPDATE crawl_jobs SET source_detail = 'urls.csv.gz breaks off' WHERE id = 5""",
    "018": """
UPDATE crawl_jobs SET source_worker = 'h/1', source_lease_until = now(), source_attempts = 1 WHERE id = 4;
UPDATE crawl_jobs SET source_asked_at = now(), source_available_at = now(), source_wait = 'asked' WHERE id = 5""",
    "019": """
INSERT INTO pages (job_id, key, number, kind, url, depth, pattern)
    VALUES (5, '\\x00112233445566778899aabbccddeeff', 1, 'start', 'http://site.test/', 0, '\\x00')""",
    "020": "UPDATE workers SET aside = 1",
}
