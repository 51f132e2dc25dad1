r"""What each table and column means, said in the database itself: psql shows it with ``\d+``."""

# ruff: noqa: E501 - a comment stands in one line, as psql shows it.

import re

from models import ddl

revision = "006"
down_revision = "005"
branch_labels = None
depends_on = None

# Table, its comment, and those of its columns.
COMMENTS: dict[str, tuple[str, dict[str, str]]] = {
    "profiles": (
        "Users. What belongs to one is deleted with it.",
        {
            "id": "From the identity provider, or generated",
            "email": "One user for each address as it is written: capitals count",
            "full_name": "NULL: not given",
            "avatar_url": "Picture of the user, for other services; NULL: none",
            "role": "For the access rules of other services; grants nothing here",
            "user_tier": "Subscription, set by other services; limits nothing here",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
        },
    ),
    "workers": (
        "Celery workers that are alive: each writes its own row and deletes it when it leaves.",
        {
            "name": "Celery's name of the worker, and its process id",
            "slots": "Chunks that it runs at once",
            "version": "Version of Pixtrawl",
            "started_at": "When it wrote its row first",
            "seen_at": "Last heartbeat, one every 3 seconds; a worker unseen for 15 seconds counts as gone",
        },
    ),
    "activity_logs": (
        "Who did what, and when.",
        {
            "id": "Generated",
            "user_id": "Who did it; NULL: the system",
            "action": "What was done, such as crawl_job.submitted",
            "resource_type": "What it was done to, such as crawl_job; NULL: nothing",
            "resource_id": "Its id as text, without a foreign key: it may be gone",
            "metadata": "More about it; NULL: nothing more",
            "timestamp": "When it was done",
        },
    ),
    "api_keys": (
        "Keys for the HTTP interfaces of other services; only their hashes are kept.",
        {
            "id": "Generated",
            "user_id": "Owner of the key",
            "name": "What the owner calls it",
            "key_hash": "What the issuing service keeps instead of the key",
            "key_prefix": "First characters of the key, to tell it from others",
            "status": "Written by the issuing service; passing expires_at does not change it",
            "permissions": "Array of what the key opens, in the words of the issuing service",
            "rate_limit": "Requests an hour",
            "usage_count": "Requests so far",
            "last_used_at": "NULL: never used",
            "last_used_ip": "IPv4 or IPv6 address of the last use; NULL: never used",
            "expires_at": "NULL: never",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
        },
    ),
    "credit_accounts": (
        "Credits of a user. The balance is the sum of completed amounts and open holds.",
        {
            "id": "Generated",
            "user_id": "Owner; one account each",
            "current_balance": "Credits free to spend: open holds are taken off already",
            "monthly_usage": "Credits charged or held in usage_period",
            "average_daily_usage": "Credits, for other services; not written here",
            "auto_refill_enabled": "Wish to be topped up automatically; this version does not act on it",
            "refill_threshold": "Balance under which a top-up is wished",
            "refill_amount": "Credits of one top-up",
            "monthly_limit": "Most that monthly_usage may reach; a hold beyond it is refused",
            "usage_period": "Month of monthly_usage (YYYY-MM in UTC), never earlier than before; empty: no hold yet",
            "closing_at": "Since when it is being deleted in batches, which the ledger allows then; NULL: not closing",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
        },
    ),
    "notification_preferences": (
        "Which channels and topics a user wants, for the services that deliver.",
        {
            "id": "Generated",
            "user_id": "Whose wishes; one row each",
            "email_enabled": "Send by e-mail",
            "push_enabled": "Send to devices",
            "sms_enabled": "Send by text message",
            "crawl_jobs_enabled": "Tell about jobs",
            "datasets_enabled": "Tell about datasets",
            "billing_enabled": "Tell about credits",
            "security_enabled": "Tell about sign-ins and keys",
            "marketing_enabled": "Tell about offers",
            "product_updates_enabled": "Tell about new versions",
            "digest_frequency": "How often messages are sent together",
            "quiet_hours_start": "The user's local time from which nothing is sent; NULL: no quiet hours",
            "quiet_hours_end": "The user's local time until which nothing is sent; NULL: no quiet hours",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
        },
    ),
    "notifications": (
        "What users are told: one row is one message to one user.",
        {
            "id": "Generated",
            "user_id": "Who is told",
            "title": "One line",
            "message": "Whole sentences",
            "type": "Tone",
            "category": "Topic, such as crawl_job or billing; NULL: none",
            "icon": "For the screens of other services; NULL: theirs to choose",
            "color": "For the screens of other services; NULL: theirs to choose",
            "action_url": "Where its button leads; NULL: no button",
            "action_label": "Words on its button; NULL: no button",
            "is_read": "Written together with read_at",
            "read_at": "When it was read; NULL exactly while is_read is false",
            "metadata": "What it is about, such as {job_id}; NULL: nothing more",
            "created_at": "When the row was made",
        },
    ),
    "projects": (
        "Folders of jobs. Each belongs to one user, whose account pays.",
        {
            "id": "Generated",
            "name": "What its owner calls it; need not be unique",
            "description": "NULL: none",
            "user_id": "Owner, whose account pays for its jobs",
            "status": "Only an active project takes jobs from `pixtrawl submit`; jobs that run go on",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
        },
    ),
    "usage_metrics": (
        "What one user used on one day (UTC), exact in bytes; workers add to it as they commit.",
        {
            "id": "Generated",
            "user_id": "Whose use",
            "metric_date": "Day in UTC",
            "images_processed": "Images accepted that day",
            "images_limit": "Allowance for other services to show; not enforced here",
            "storage_used_gb": "storage_used_bytes in GB (10^9 bytes), rounded; a trigger ties the two",
            "storage_limit_gb": "Allowance for other services to show; not enforced here",
            "api_calls": "Requests to the HTTP interfaces of other services, which count them",
            "api_calls_limit": "Allowance for other services to show; not enforced here",
            "bandwidth_used_gb": "bandwidth_used_bytes in GB (10^9 bytes), rounded; a trigger ties the two",
            "bandwidth_limit_gb": "Allowance for other services to show; not enforced here",
            "storage_used_bytes": "Bytes of the images accepted that day",
            "bandwidth_used_bytes": "Bytes of bodies received that day, all attempts and refused candidates included",
            "created_at": "When the row was made",
        },
    ),
    "crawl_jobs": (
        "Requests for images. Each counter moves in the transaction of what it counts.",
        {
            "id": "Generated",
            "project_id": "Its project, and by it the user who pays",
            "name": "What its owner calls it; need not be unique",
            "keywords": "Array of words to search for; NULL: none. Written by other services only",
            "max_images": "Most images that are accepted; the source ends there",
            "status": "Its ends are final; only the scheduler ends a job with a source_kind",
            "progress": "Percent of candidates with an outcome, or of max_images if more; 100 only when completed",
            "total_images": "Candidates known so far; for a list of URLs all of them from the start",
            "downloaded_images": "Candidates whose body arrived whole",
            "valid_images": "Accepted candidates = its rows in images",
            "total_chunks": "Chunks made so far = its rows in job_chunks",
            "active_chunks": "Chunks that a worker has now",
            "completed_chunks": "Chunks that ended as completed",
            "failed_chunks": "Chunks that ended as failed",
            "task_ids": "Celery ids of the chunks in flight; refreshed by the scheduler, at most once a second",
            "started_at": "When its first chunk started, or its end if none did; NULL: not yet",
            "completed_at": "When it ended, however it ended; NULL exactly while it is pending or running",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
            "priority": "0 to 10, 10 most urgent; its chunks get it when they are made",
            "source_kind": "Where candidates come from; NULL: made by another service, the scheduler leaves it alone",
            "source": "What the source needs, by its kind; for url_list the stored object and its files",
            "source_step": "Moves of the cursor so far, the guard of the next one",
            "source_cursor": "Where the source goes on, by its kind",
            "source_position": "Position of the next candidate to go into a chunk",
            "source_state": "splitting: yields now; open: waits until more are wanted; the others: ended",
            "store_url": "Folder of its images, as a URL; NULL: made by another service",
            "unit_price": "Credits for one accepted image, fixed when it was submitted",
            "failed_images": "Candidates without an image = positions that its failures cover",
            "failures": "{reason: candidates}, in sum failed_images",
            "stored_bytes": "Bytes of its images",
            "wire_bytes": "Bytes of bodies received, all attempts and refused candidates included",
            "fingerprint": "sha256 (hex) of input and options, by which `run` finds a job again; NULL: not asked for",
            "blocked_reason": "Why nothing is dispatched until its account can pay; NULL: not blocked",
            "dispatched_at": "When a chunk of it was last dispatched, from when ageing counts; NULL: never",
            "paused_at": "Since when nothing is dispatched, by the user's wish; NULL: not paused",
            "cancelled_at": "When its end was asked for; it ends once its chunks have; NULL: never",
        },
    ),
    "credit_transactions": (
        "The ledger. What has ended never changes; a pending usage row is the hold of a chunk.",
        {
            "id": "Generated",
            "account_id": "Account that it moves",
            "user_id": "Owner of the account",
            "type": "Why credits moved",
            "description": "For people; NULL: none",
            "amount": "Credits, negative for usage; counts when completed, and when a pending usage",
            "balance_after": "Balance of the account when this row got its present status",
            "status": "Only a pending row can change; then it has ended",
            "metadata": "More about it; NULL: nothing more",
            "job_id": "Job of a hold; no foreign key, the ledger outlives jobs; NULL: no hold",
            "chunk_id": "Chunk of a hold, at most one open hold each; no foreign key; NULL: no hold",
            "held": "Credits taken when the chunk was dispatched, its worst case; NULL: no hold",
            "unit_price": "Credits for one image of the chunk; NULL: no hold",
            "period": "Month in whose usage it counts (YYYY-MM in UTC); NULL: no hold",
            "settled_at": "When it ended; NULL while pending",
            "created_at": "When the row was made",
        },
    ),
    "failures": (
        "Candidates without an image, a row each or a range, and why. They are never charged.",
        {
            "job_id": "Its job",
            "position": "Position of the candidate in its job, from 0; of a range the first",
            "position_end": "Last position of the range, included; the same for one candidate",
            "chunk_id": "Chunk that it was in; no foreign key; NULL: in none yet",
            "url": "URL as it stands in the source; NULL: ended together with others",
            "reason": "Why there is no image: docs/outcomes.md",
            "http_status": "Of the answer that it ended on; NULL: none",
            "final_url": "URL that it ended on, after redirects; NULL: none was asked",
            "detail": "What happened, for people",
            "at": "When it was recorded",
        },
    ),
    "images": (
        "Accepted candidates: each has its object in the store and is paid for by its chunk's hold.",
        {
            "id": "Generated",
            "crawl_job_id": "Its job",
            "original_url": "URL as it stands in the source",
            "filename": "Name of its object: sha256 (hex) and extension",
            "storage_url": "Where its object is, as a URL",
            "width": "Pixels as they are stored, before orientation",
            "height": "Pixels as they are stored, before orientation",
            "file_size": "Bytes of its object",
            "format": "What its bytes are, whatever its URL says: jpeg, png, webp, gif, avif",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
            "chunk_id": "Chunk that it was in; no foreign key",
            "position": "Position of the candidate in its job, from 0; NULL: another service's",
            "sha256": "Digest of its object, 32 bytes; NULL: another service's",
            "perceptual_hash": "64-bit difference hash, signed: similar pictures differ in few bits",
            "orientation": "EXIF orientation, 1 to 8",
            "final_url": "URL that answered, after redirects",
            "keyword": "Word that found it; NULL: it was not searched for",
            "source_page": "Page that it was found on; NULL: the source is no page",
            "provider": "Service that named it; NULL: none",
            "licence": "As its provider states it; NULL: not stated",
            "creator": "As its provider states it; NULL: not stated",
            "fetched_at": "When it was stored, by the worker's clock",
        },
    ),
    "job_chunks": (
        "Runs of candidates that a worker takes at once, fenced by (status, attempt, checkpoint).",
        {
            "id": "Generated",
            "job_id": "Its job",
            "chunk_index": "Number within its job, from 0",
            "status": "'Queued' is pending with queued_at; ended means that each candidate has an outcome",
            "priority": "0 to 10, 10 most urgent; from its job",
            "image_range": "{start, end}: positions of its candidates in the job, end excluded",
            "error_message": "Why it ended before its candidates were tried; NULL: it did not",
            "retry_count": "Leases lost in a row without an outcome; too many fail it",
            "task_id": "Celery id of its last dispatch; NULL: never dispatched",
            "created_at": "When the row was made",
            "updated_at": "When the row last changed, whoever changed it: a trigger moves it",
            "size": "Its candidates",
            "accepted": "Candidates accepted = its rows in images",
            "failed": "Candidates without an image = positions that its failures cover",
            "attempt": "Dispatches so far; a message of an earlier one is ignored",
            "checkpoint": "Commits of outcomes so far",
            "queued_at": "When its message was last sent; NULL: no message is under way",
            "available_at": "Parked until then; NULL: not parked",
            "lease_until": "Its worker renews it or loses the chunk; infinity: another service's; NULL: not processing",
            "worker": "Process that has it (host/pid); NULL exactly while lease_until is",
            "candidates": "[[url, line], ...] as JSON, compressed by zlib; NULL: another service's, never dispatched",
        },
    ),
}


def upgrade() -> None:
    for table, (comment, columns) in COMMENTS.items():
        comments = {f"TABLE {table}": comment}
        comments |= {f"COLUMN {table}.{column}": meaning for column, meaning in columns.items()}
        ddl.execute(
            table, ";\n".join(f"COMMENT ON {what} IS {quoted(said)}" for what, said in comments.items())
        )


def downgrade() -> None:
    for table, (_comment, columns) in COMMENTS.items():
        whats = [f"TABLE {table}", *(f"COLUMN {table}.{column}" for column in columns)]
        ddl.execute(table, ";\n".join(f"COMMENT ON {what} IS NULL" for what in whats))


def quoted(comment: str) -> str:
    """A literal of SQL, in which no word after a colon is taken for a parameter."""
    literal = comment.replace("'", "''")
    return "'" + re.sub(r":(?=\w)", r"\\:", literal) + "'"
