"""The failures of a job in the order of its source, a page of positions at a time. Reads only.

Each page is a statement of its own, so that whoever reads slowly keeps no transaction open.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.breakdown import FAILURE_AUTHORITY, host_of

PAGE_POSITIONS = 10_000

FIELDS = (
    "position",
    "position_end",
    "url",
    "host",
    "reason",
    "http_status",
    "final_url",
    "detail",
    "attempts",
    "elapsed_ms",
    "chunk",
    "at",
    "evidence",
)
FAILURES = text(f"""
SELECT position, position_end, url, {FAILURE_AUTHORITY}, reason, http_status, final_url, detail, attempts,
    elapsed_ms, chunk_id, at, evidence
FROM failures
WHERE job_id = :job_id AND position BETWEEN :first AND :last
    AND (CAST(:reasons AS text[]) IS NULL OR reason = ANY(CAST(:reasons AS text[])))
    AND (CAST(:host AS text) IS NULL OR strpos(lower({FAILURE_AUTHORITY}), :host) > 0)
ORDER BY position
""")
LAST_FAILURE = text("SELECT max(position) FROM failures WHERE job_id = :job_id")


def last_failure(session: Session, job_id: int) -> int | None:
    """The highest position that a failure begins at; None: there is none."""
    position: int | None = session.execute(LAST_FAILURE, {"job_id": job_id}).scalar_one()
    return position


def list_failures(
    session: Session, job_id: int, first: int, *, reasons: Collection[str] = (), host: str | None = None
) -> list[dict[str, Any]]:
    """Failures at PAGE_POSITIONS positions from ``first``, perhaps only those for some reasons or of one host."""
    parameters = {
        "job_id": job_id,
        "first": first,
        "last": first + PAGE_POSITIONS - 1,
        "reasons": sorted(reasons) or None,
        "host": host,
    }
    rows = [dict(zip(FIELDS, row, strict=True)) for row in session.execute(FAILURES, parameters)]
    for row in rows:
        row["host"] = host_of(row["host"])
    return [row for row in rows if host is None or row["host"] == host]
