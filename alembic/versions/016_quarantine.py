"""Nobody is suspected any more: a candidate that kills is caught in the act, in a helper process."""

import sqlalchemy as sa

from alembic import op
from models import ddl

revision = "016"
down_revision = "015"
branch_labels = None
depends_on = None

SUSPECTS = "Candidates that run alone, named before they begin: whose fault it is if the worker is lost."
COLUMNS = {
    "chunk_id": "Its chunk, which has one suspect at most",
    "position": "Its place in the job",
    "url": "What it is",
    "attempt": "Attempt of the chunk in which it last ran alone",
    "losses": "Workers lost in a row while it ran alone",
}


def upgrade() -> None:
    ddl.drop_table("suspects")


def downgrade() -> None:
    ddl.create_table(
        "suspects",
        sa.Column("chunk_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("chunk_id", name=op.f("pk_suspects")),
        sa.ForeignKeyConstraint(
            ["chunk_id"], ["job_chunks.id"], name=op.f("fk_suspects_chunk_id_job_chunks"), ondelete="CASCADE"
        ),
    )
    ddl.execute("suspects", f"COMMENT ON TABLE suspects IS '{SUSPECTS}'")
    for column, sentence in COLUMNS.items():
        ddl.execute("suspects", f"COMMENT ON COLUMN suspects.{column} IS '{sentence}'")
