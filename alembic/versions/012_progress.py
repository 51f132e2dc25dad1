"""Progress that can be seen from outside: what workers and the leading scheduler last did, and which candidate runs
alone.
"""

import sqlalchemy as sa

from alembic import op
from models import ddl

revision = "012"
down_revision = "011"
branch_labels = None
depends_on = None

NOW = sa.text("now()")
SUSPECTS = (
    "Candidates that run alone, named before they begin: whose fault it is if the worker is lost.",
    {
        "chunk_id": "Its chunk, which has one suspect at most",
        "position": "Its place in the job",
        "url": "What it is",
        "attempt": "Attempt of the chunk in which it last ran alone",
        "losses": "Workers lost in a row while it ran alone",
    },
)
LEADERSHIP = (
    "The scheduler that leads, or led last: one row. The lock decides who leads, not this row.",
    {
        "id": "Always 1",
        "scheduler": "Process that leads (host/pid)",
        "since": "When it became the leader",
        "round_at": "When it last finished a round, to the second",
    },
)
WORKERS = {
    "busy": "Chunks that it runs now",
    "active_at": "When it last began or ended a chunk, to a few seconds; its start if it never did",
}


def upgrade() -> None:
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
    ddl.create_table(
        "leadership",
        sa.Column("id", sa.SmallInteger(), server_default=sa.text("1"), nullable=False, autoincrement=False),
        sa.Column("scheduler", sa.String(255), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("round_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leadership")),
        sa.CheckConstraint("id = 1", name=op.f("ck_leadership_id")),
    )
    ddl.add_columns(
        "workers",
        [
            sa.Column("busy", sa.Integer(), server_default=sa.text("0"), nullable=False),
            sa.Column("active_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        ],
    )
    ddl.add_check("workers", "busy", "busy >= 0", key="name")
    comment("suspects", *SUSPECTS)
    comment("leadership", *LEADERSHIP)
    comment("workers", None, WORKERS)


def downgrade() -> None:
    ddl.drop_table("suspects")
    ddl.drop_table("leadership")
    ddl.drop_check("workers", "busy")
    ddl.drop_columns("workers", ["busy", "active_at"])


def comment(table: str, meaning: str | None, columns: dict[str, str]) -> None:
    if meaning is not None:
        ddl.execute(table, f"COMMENT ON TABLE {table} IS '{meaning}'")
    for column, sentence in columns.items():
        ddl.execute(table, f"COMMENT ON COLUMN {table}.{column} IS '{sentence}'")
