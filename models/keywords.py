"""How far a job that searches has come with each of its keywords. Takes a Session and changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.jobs import SourceKind

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
    row = session.execute(JOB, {"job_id": job_id}).one_or_none()
    if row is None:  # It is not made yet: somebody wants to know what it would begin with.
        return Reached(0, 0, {})
    max_images, accepted, unresolved = row
    counted = None
    if accepted <= COUNTED_MAX:
        rows = session.execute(ACCEPTED, {"job_id": job_id})
        counted = {keyword: int(number) for keyword, number in rows}
    return Reached(max_images, unresolved, counted)


FEEDS = text("""
SELECT feed->>'keyword' AS keyword, feed->>'provider' AS provider,
    coalesce(CAST(feed->>'handed' AS int), 0) AS candidates, feed->>'ended' AS ended
FROM crawl_jobs, jsonb_array_elements(source_cursor->'feeds') AS feed WHERE id = :job_id
""")
ACCEPTED_AT = text("""
SELECT keyword, provider, count(*) FROM images
WHERE crawl_job_id = :job_id AND keyword IS NOT NULL GROUP BY keyword, provider
""")


def search_reports(
    session: Session, job: Mapping[str, Any], counted_max: int | None = COUNTED_MAX
) -> list[dict[str, Any]]:
    """What each keyword of a search brought at each provider: candidates, accepted images (None when there are more
    than ``counted_max`` to count), and why there is no more.
    """
    if job["source_kind"] != SourceKind.KEYWORDS:
        return []
    accepted: dict[tuple[str, str], int] | None = None
    if counted_max is None or job["valid_images"] <= counted_max:
        rows = session.execute(ACCEPTED_AT, {"job_id": job["id"]})
        accepted = {(keyword, provider): int(number) for keyword, provider, number in rows}
    feeds = session.execute(FEEDS, {"job_id": job["id"]}).mappings()
    return [
        dict(feed)
        | {"accepted": None if accepted is None else accepted.get((feed["keyword"], feed["provider"]), 0)}
        for feed in feeds
    ]
