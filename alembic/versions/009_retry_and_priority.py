"""A job's priority may change while its chunks wait; comments on what a retry and a short hold changed."""

import sqlalchemy as sa

from models import ddl

revision = "009"
down_revision = "008"
branch_labels = None
depends_on = None

INDEX = "ix_crawl_jobs_reprioritized"
MEANING = "When its priority changed, while chunks of it may still have another; NULL: none has"
# Column: its comment before, and now.
COMMENTS = {
    "crawl_jobs.status": (
        "Its ends are final; only the scheduler ends a job with a source_kind",
        "Only the scheduler ends a job with a source_kind, and only a retry reopens it",
    ),
    "crawl_jobs.downloaded_images": (
        "Candidates whose body arrived whole",
        "Bodies that arrived whole; of a candidate that was tried again, each",
    ),
    "crawl_jobs.priority": (
        "0 to 10, 10 most urgent; its chunks get it when they are made",
        "0 to 10, 10 most urgent; its chunks have it, too, unless reprioritized_at is set",
    ),
    "credit_transactions.held": (
        "Credits taken when the chunk was dispatched, its worst case; NULL: no hold",
        "Credits taken when the chunk was dispatched: its worst case, or all there were; NULL: no hold",
    ),
}


def upgrade() -> None:
    ddl.add_columns("crawl_jobs", [sa.Column("reprioritized_at", sa.DateTime(timezone=True))])
    comment("crawl_jobs.reprioritized_at", MEANING)
    ddl.create_index(INDEX, "crawl_jobs", ["reprioritized_at"], where="reprioritized_at IS NOT NULL")
    for column, (_before, now) in COMMENTS.items():
        comment(column, now)


def downgrade() -> None:
    for column, (before, _now) in COMMENTS.items():
        comment(column, before)
    ddl.drop_index(INDEX, "crawl_jobs")
    ddl.drop_columns("crawl_jobs", ["reprioritized_at"])


def comment(column: str, meaning: str) -> None:
    table = column.partition(".")[0]
    ddl.execute(table, f"COMMENT ON COLUMN {column} IS '{meaning}'")
