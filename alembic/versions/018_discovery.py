"""Sources that ask the web, keywords and pages: a worker makes their steps, under a lease of the job."""

import sqlalchemy as sa

from models import ddl

revision = "018"
down_revision = "017"
branch_labels = None
depends_on = None

KINDS_BEFORE = "source_kind IN ('url_list', 'url_table')"
KINDS = "source_kind IN ('url_list', 'url_table', 'keywords', 'pages')"
COLUMNS = {
    "source_worker": (
        sa.String(255),
        "Process that makes the next step of a source which asks the web; NULL: nobody does now",
    ),
    "source_lease_until": (
        sa.DateTime(timezone=True),
        "That process renews it or loses the step; NULL exactly while source_worker is",
    ),
    "source_asked_at": (
        sa.DateTime(timezone=True),
        "When workers were last asked to make the next step; NULL: no message is under way",
    ),
    "source_available_at": (
        sa.DateTime(timezone=True),
        "Nobody makes the next step before; NULL: it need not wait",
    ),
    "source_wait": (sa.Text(), "Why it waits, for people; NULL exactly while source_available_at is"),
}
COMMENTS = {name: meaning for name, (_, meaning) in COLUMNS.items()} | {
    "source_attempts": "Starts of the next step so far that came to nothing, or are under way",
    "keywords": "Array of words to search for; NULL: it does not search",
}
RULES = {
    "source_leased": "(source_lease_until IS NULL) = (source_worker IS NULL)",
    "source_waits": "(source_available_at IS NULL) = (source_wait IS NULL)",
    "source_attempts": "source_attempts >= 0",
}
KEYWORDS_BEFORE = "Array of words to search for; NULL: none. Written by other services only"


def upgrade() -> None:
    attempts = sa.Column("source_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False)
    ddl.add_columns("crawl_jobs", [*(sa.Column(name, kind) for name, (kind, _) in COLUMNS.items()), attempts])
    for name, meaning in COMMENTS.items():
        ddl.execute("crawl_jobs", f"COMMENT ON COLUMN crawl_jobs.{name} IS '{meaning}'")
    ddl.drop_check("crawl_jobs", "source_kind")
    ddl.add_checks("crawl_jobs", {"source_kind": KINDS} | RULES)


def downgrade() -> None:
    for rule in RULES:
        ddl.drop_check("crawl_jobs", rule)
    # What such a source has handed out is crawled to its end; it yields no more, for nobody there could ask.
    ddl.update(
        "crawl_jobs",
        "source_kind = 'url_list', source_state = "
        "CASE WHEN source_state IN ('splitting', 'open') THEN 'exhausted' ELSE source_state END",
        "source_kind IN ('keywords', 'pages')",
    )
    ddl.drop_check("crawl_jobs", "source_kind")
    ddl.add_check("crawl_jobs", "source_kind", KINDS_BEFORE)
    ddl.drop_columns("crawl_jobs", [*COLUMNS, "source_attempts"])
    ddl.execute("crawl_jobs", f"COMMENT ON COLUMN crawl_jobs.keywords IS '{KEYWORDS_BEFORE}'")
