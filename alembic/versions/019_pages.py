"""The frontier of crawls by pages."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op
from models import ddl

revision = "019"
down_revision = "018"
branch_labels = None
depends_on = None

COMMENT = "Every page that a job of source_kind pages knows, once."
COMMENTS = {
    "job_id": "Its job",
    "key": "First 16 bytes of sha256 of its URL''s normal form",
    "number": "Pages of one depth are read in this order; from 1",
    "kind": "start: given by the user; page: linked; sitemap: names pages",
    "url": "What is asked for, byte for byte",
    "depth": "Links from a page that was given; of those 0",
    "hops": "Redirects in a row that led to it",
    "found_on": "URL of the page that linked or redirected to it; NULL: it was given",
    "pattern": "16 bytes for host and path with all numbers alike",
    "state": "pending: to be read; the others are its ends",
    "reason": "Why it failed, or opt_out: it was read, and its images may not be taken; NULL: neither",
    "http_status": "NULL: there was no response",
    "detail": "More for people; NULL: there is nothing to say",
    "evidence": "What its owner said against it, and where; NULL: nothing",
    "images": "Images that it names",
    "fresh": "Whether it brought a new image, or a page of another pattern",
    "losses": "Steps in a row that began with it and never ended",
    "attempts": "Transfers that failed, and may be tried again",
    "refusals": "Times that its host asked to wait instead of giving it",
    "rest": "Its images that were not wanted yet, as JSON, compressed; NULL: none",
    "ended_at": "When it ended; NULL: it has not",
}
CHECKS = {
    "kind": "kind IN ('start', 'page', 'sitemap')",
    "state": "state IN ('pending', 'read', 'redirected', 'failed')",
    "key": "octet_length(key) = 16",
    **{name: f"{name} >= 0" for name in ("depth", "hops", "losses", "attempts", "refusals")},
    "failed": "state <> 'failed' OR reason IS NOT NULL",
    "rest": "rest IS NULL OR state = 'pending'",
}


def small(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.SmallInteger(), server_default=sa.text("0"), nullable=False)


def upgrade() -> None:
    ddl.create_table(
        "pages",
        sa.Column("job_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("depth", sa.SmallInteger(), nullable=False),
        small("hops"),
        sa.Column("found_on", sa.Text(), nullable=True),
        sa.Column("pattern", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(10), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("reason", sa.String(20), nullable=True),
        sa.Column("http_status", sa.SmallInteger(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("evidence", JSONB(), nullable=True),
        sa.Column("images", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("fresh", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        small("losses"),
        small("attempts"),
        small("refusals"),
        sa.Column("rest", sa.LargeBinary(), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        *(sa.CheckConstraint(rule, name=op.f(f"ck_pages_{name}")) for name, rule in CHECKS.items()),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_pages")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["crawl_jobs.id"], name=op.f("fk_pages_job_id_crawl_jobs"), ondelete="CASCADE"
        ),
    )
    ddl.create_index("ix_pages_pending", "pages", ["job_id", "depth", "number"], where="state = 'pending'")
    ddl.create_index("ix_pages_pattern", "pages", ["job_id", "pattern"])
    ddl.execute("pages", f"COMMENT ON TABLE pages IS '{COMMENT}'")
    for name, meaning in COMMENTS.items():
        ddl.execute("pages", f"COMMENT ON COLUMN pages.{name} IS '{meaning}'")


def downgrade() -> None:
    ddl.drop_table("pages")
