"""How closely the images of a job are looked at before they are accepted."""

import sqlalchemy as sa

from models import ddl

revision = "015"
down_revision = "014"
branch_labels = None
depends_on = None

VERIFICATION = (
    "How closely its images are looked at: full (decoded), header (walked), none (their first bytes)"
)
UNKNOWN = {
    "width": "Pixels as they are stored, before orientation; NULL: its job does not look",
    "height": "Pixels as they are stored, before orientation; NULL: its job does not look",
    "perceptual_hash": "64-bit difference hash, signed: similar pictures differ in few bits; NULL: not decoded",
    "orientation": "EXIF orientation, 1 to 8; NULL: its job does not look",
}
KNOWN = {
    "width": "Pixels as they are stored, before orientation",
    "height": "Pixels as they are stored, before orientation",
    "perceptual_hash": "64-bit difference hash, signed: similar pictures differ in few bits",
    "orientation": "EXIF orientation, 1 to 8",
}


def upgrade() -> None:
    column = sa.Column("verification", sa.String(10), server_default=sa.text("'full'"), nullable=False)
    ddl.add_columns("crawl_jobs", [column])
    ddl.add_check("crawl_jobs", "verification", "verification IN ('full', 'header', 'none')")
    ddl.execute("crawl_jobs", f"COMMENT ON COLUMN crawl_jobs.verification IS '{VERIFICATION}'")
    comment_images(UNKNOWN)


def downgrade() -> None:
    ddl.drop_check("crawl_jobs", "verification")
    ddl.drop_columns("crawl_jobs", ["verification"])
    comment_images(KNOWN)


def comment_images(columns: dict[str, str]) -> None:
    for column, sentence in columns.items():
        ddl.execute("images", f"COMMENT ON COLUMN images.{column} IS '{sentence}'")
