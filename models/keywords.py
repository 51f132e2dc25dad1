"""How far a job that searches has come with each of its keywords. Takes a Session and changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

COUNTED_MAX = 200_000
"""Images of a job up to which they are counted by keyword while it goes on: a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Reached:
    """``accepted`` images by keyword, None when there are too many to count; ``unresolved`` candidates have no
    outcome yet.
    """

    max_images: int
    unresolved: int
    accepted: Mapping[str, int] | None


JOB = text("""
SELECT max_images, valid_images, source_position - valid_images - failed_images FROM crawl_jobs WHERE id = :job_id
""")
ACCEPTED = text("""
SELECT keyword, count(*) FROM images WHERE crawl_job_id = :job_id AND keyword IS NOT NULL GROUP BY keyword
""")


def reached(session: Session, job_id: int) -> Reached:
    """What there is of each keyword now."""
    max_images, accepted, unresolved = session.execute(JOB, {"job_id": job_id}).one()
    counted = None
    if accepted <= COUNTED_MAX:
        rows = session.execute(ACCEPTED, {"job_id": job_id})
        counted = {keyword: int(number) for keyword, number in rows}
    return Reached(max_images, unresolved, counted)
