"""The chunks of a job, and the subscription tier of a profile."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op
from models import ddl

revision = "002"
down_revision = "001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.create_table(
        "job_chunks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("chunk_index", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False, server_default=sa.text("'pending'")),
        sa.Column("priority", sa.Integer(), nullable=False, server_default=sa.text("5")),
        sa.Column("image_range", JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("error_message", sa.Text()),
        sa.Column("retry_count", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("task_id", sa.String(255)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_chunks")),
        sa.UniqueConstraint("job_id", "chunk_index", name=op.f("uq_job_chunks_job_id_chunk_index")),
        sa.CheckConstraint(
            "status IN ('pending', 'processing', 'completed', 'failed')", name=op.f("ck_job_chunks_status")
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 10", name=op.f("ck_job_chunks_priority")),
        sa.CheckConstraint("retry_count >= 0", name=op.f("ck_job_chunks_retry_count")),
    )
    tier = sa.Column("user_tier", sa.String(20), nullable=False, server_default=sa.text("'FREE'"))
    ddl.add_columns("profiles", [tier])
    ddl.add_check("profiles", "user_tier", "user_tier IN ('FREE', 'PRO', 'ENTERPRISE')")


def downgrade() -> None:
    ddl.drop_columns("profiles", ["user_tier"])
    ddl.drop_table("job_chunks")
