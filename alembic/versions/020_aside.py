"""How many chunks of each worker go on aside: only stragglers are left of them, and they take no slot."""

import sqlalchemy as sa

from models import ddl

revision = "020"
down_revision = "019"
branch_labels = None
depends_on = None

ASIDE = "Chunks of which only stragglers are left, beside those that it runs"


def upgrade() -> None:
    column = sa.Column("aside", sa.Integer(), server_default=sa.text("0"), nullable=False)
    ddl.add_columns("workers", [column])
    ddl.add_check("workers", "aside", "aside >= 0", key="name")
    ddl.execute("workers", f"COMMENT ON COLUMN workers.aside IS '{ASIDE}'")


def downgrade() -> None:
    ddl.drop_check("workers", "aside")
    ddl.drop_columns("workers", ["aside"])
