"""Why owners did not want an image collected: the evidence of a refusal, and which opt-outs a job does not obey."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from models import ddl

revision = "013"
down_revision = "012"
branch_labels = None
depends_on = None

COMMENTS = {
    "failures.evidence": (
        "What an owner said against it, where and when: docs/opt-outs.md; NULL: nobody said anything"
    ),
    "crawl_jobs.ignored_opt_outs": (
        "Array of the opt-outs that it does not obey, as far as the operator of a worker allows it, too"
    ),
}


def upgrade() -> None:
    ddl.add_columns("failures", [sa.Column("evidence", JSONB(), nullable=True)])
    ddl.add_check(
        "failures",
        "evidence",
        "evidence IS NULL OR (reason IN ('robots', 'opt_out') AND jsonb_typeof(evidence) = 'object')",
        key="job_id",
    )
    ddl.add_columns(
        "crawl_jobs",
        [sa.Column("ignored_opt_outs", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False)],
    )
    ddl.add_check(
        "crawl_jobs",
        "ignored_opt_outs",
        'jsonb_typeof(ignored_opt_outs) = \'array\' AND ignored_opt_outs <@ \'["robots", "x-robots-tag", "tdm"]\'',
    )
    for column, meaning in COMMENTS.items():
        ddl.execute(column.partition(".")[0], f"COMMENT ON COLUMN {column} IS '{meaning}'")


def downgrade() -> None:
    ddl.drop_check("crawl_jobs", "ignored_opt_outs")
    ddl.drop_columns("crawl_jobs", ["ignored_opt_outs"])
    ddl.drop_check("failures", "evidence")
    ddl.drop_columns("failures", ["evidence"])
