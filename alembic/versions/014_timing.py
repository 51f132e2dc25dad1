"""How long each candidate took, in how many attempts, and what the server answered for an image."""

import sqlalchemy as sa

from models import ddl

revision = "014"
down_revision = "013"
branch_labels = None
depends_on = None

# Without CHECKs: holding a billion rows that are all NULL to a rule would read them all.
COLUMNS = {
    "images": {
        "http_status": (sa.SmallInteger(), "Of the answer that it came with: 200 or 203; NULL: not recorded"),
        "attempts": (sa.SmallInteger(), "Transfers that it took; NULL: not recorded"),
        "elapsed_ms": (
            sa.Integer(),
            "Milliseconds of its transfers, redirects included, pauses not; NULL: not recorded",
        ),
    },
    "failures": {
        "attempts": (sa.SmallInteger(), "Transfers that were tried; NULL: none, or not recorded"),
        "elapsed_ms": (
            sa.Integer(),
            "Milliseconds of its transfers, redirects included, pauses not; NULL: none, or not recorded",
        ),
    },
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        ddl.add_columns(table, [sa.Column(name, kind) for name, (kind, _) in columns.items()])
        for name, (_, meaning) in columns.items():
            ddl.execute(table, f"COMMENT ON COLUMN {table}.{name} IS '{meaning}'")


def downgrade() -> None:
    for table, columns in COLUMNS.items():
        ddl.drop_columns(table, list(columns))
