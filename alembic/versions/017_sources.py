"""What sources say of a candidate, what a job has seen of its source, and why that ended."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op
from models import ddl

revision = "017"
down_revision = "016"
branch_labels = None
depends_on = None

REASONS = [
    *("invalid_url", "blocked_address", "robots", "opt_out", "dns", "connect", "tls", "protocol", "timeout"),
    *("too_slow", "redirects", "http_status", "rate_limited", "too_large", "not_an_image", "corrupt"),
    *("too_many_pixels", "filtered", "duplicate", "not_needed", "worker_lost", "cancelled"),
]
TABLES = {
    "seen_keys": "What a job''s source has yielded, while it goes on: nothing is yielded twice.",
}
NEW = {
    "seen_keys.job_id": "Its job",
    "seen_keys.key": "First 16 bytes of sha256(kind, NUL, URL or digest)",
    "seen_keys.position": "Position of the first candidate that had it",
    "images.metadata": "Whatever else its source says: other columns of a table, …; NULL: nothing",
    "crawl_jobs.source_detail": "Why the source ended, or where it broke off, for people; NULL: nothing to say",
}
OLD_AND_NEW = {
    "images.licence": (
        "As its provider states it; NULL: not stated",
        "As its source states it; NULL: not stated",
    ),
    "images.creator": (
        "As its provider states it; NULL: not stated",
        "As its source states it; NULL: not stated",
    ),
    "crawl_jobs.source": (
        "What the source needs, by its kind; for url_list the stored object and its files",
        "What the source needs, by its kind; for url_list and url_table the stored object and its files",
    ),
    "crawl_jobs.total_images": (
        "Candidates known so far; for a list of URLs all of them from the start",
        "Candidates known so far; for lists and tables of URLs all of them from the start",
    ),
    "job_chunks.candidates": (
        "[[url, line], ...] as JSON, compressed by zlib; NULL: another service''s, never dispatched",
        "[[url, line, {more}?], …] as JSON, compressed by zlib; NULL: another service''s, never dispatched",
    ),
}


def upgrade() -> None:
    ddl.create_table(
        "seen_keys",
        sa.Column("job_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.CheckConstraint("octet_length(key) = 16", name=op.f("ck_seen_keys_key")),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_seen_keys")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["crawl_jobs.id"], name=op.f("fk_seen_keys_job_id_crawl_jobs"), ondelete="CASCADE"
        ),
    )
    ddl.add_columns("images", [sa.Column("metadata", JSONB(), nullable=True)])
    ddl.add_columns("crawl_jobs", [sa.Column("source_detail", sa.Text(), nullable=True)])
    change_words("failures", "reason", [*REASONS[:16], "mismatch", *REASONS[16:]], key="job_id, position")
    change_words("crawl_jobs", "source_kind", ["url_list", "url_table"])
    ddl.execute("seen_keys", f"COMMENT ON TABLE seen_keys IS '{TABLES['seen_keys']}'")
    comment(NEW | {column: new for column, (_, new) in OLD_AND_NEW.items()})


def downgrade() -> None:
    """Bytes that were not those of their digest become ``corrupt``; a job of a table is another service's."""
    ddl.update("crawl_jobs", "source_kind = NULL", "source_kind = 'url_table'")
    change_words("crawl_jobs", "source_kind", ["url_list"])
    ddl.update("failures", "reason = 'corrupt'", "reason = 'mismatch'", key="ctid")
    ddl.update(
        "crawl_jobs",
        "failures = (failures - 'mismatch') || jsonb_build_object('corrupt', "
        "coalesce(CAST(failures->>'corrupt' AS int), 0) + CAST(failures->>'mismatch' AS int))",
        "jsonb_exists(failures, 'mismatch')",
    )
    change_words("failures", "reason", REASONS, key="job_id, position")
    ddl.drop_columns("crawl_jobs", ["source_detail"])
    ddl.drop_columns("images", ["metadata"])
    ddl.drop_table("seen_keys")
    comment({column: old for column, (old, _) in OLD_AND_NEW.items()})


def change_words(table: str, column: str, words: list[str], key: str = "id") -> None:
    """A CHECK keeps its name and gets other words; run again it begins anew."""
    ddl.drop_check(table, column)
    ddl.add_check(table, column, f"{column} IN ({', '.join(repr(word) for word in words)})", key=key)


def comment(columns: dict[str, str]) -> None:
    for column, sentence in columns.items():
        ddl.execute(column.partition(".")[0], f"COMMENT ON COLUMN {column} IS '{sentence}'")
