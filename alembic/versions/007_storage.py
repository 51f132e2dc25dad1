"""Room on the pages of hot rows, earlier vacuums of tables that change; `python -m benchmarks.bloat` measures it.

It changes no row: the pages that exist get their room as rows on them move on.
"""

from models import ddl

revision = "007"
down_revision = "006"
branch_labels = None
depends_on = None

OPTIONS = {
    "crawl_jobs": {"autovacuum_vacuum_scale_factor": "0.02"},
    "credit_accounts": {"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02"},
    "credit_transactions": {"autovacuum_vacuum_scale_factor": "0.05"},
    "usage_metrics": {"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02"},
}


def upgrade() -> None:
    for table, options in OPTIONS.items():
        given = ", ".join(f"{name} = {value}" for name, value in options.items())
        ddl.execute(table, f"ALTER TABLE {table} SET ({given})")


def downgrade() -> None:
    for table, options in reversed(OPTIONS.items()):
        ddl.execute(table, f"ALTER TABLE {table} RESET ({', '.join(options)})")
