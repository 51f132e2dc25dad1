"""How far a crawl by pages has come: its pages by what became of them. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.jobs import SourceKind
from models.pages import PageState

COUNTS = text("""
SELECT state, reason, count(*) FROM pages WHERE job_id = :job_id GROUP BY state, reason ORDER BY 3 DESC, 2
""")


@dataclass(frozen=True, slots=True)
class PageCounts:
    """The pages of a job by what became of them; ``failed`` and ``refused`` by reason."""

    pending: int
    read: int
    redirected: int
    refused: int
    failed: Mapping[str, int]

    @property
    def document(self) -> dict[str, Any]:
        """What ``show --json`` says."""
        known = self.pending + self.read + self.redirected + sum(self.failed.values())
        return {
            "known": known,
            "pending": self.pending,
            "read": self.read,
            "images_refused": self.refused,
            "redirected": self.redirected,
            "failed": dict(self.failed),
        }


@dataclass(frozen=True, slots=True)
class UnreadPage:
    """A page that could not be read: what was wrong, or where it is instead (``moved_to``)."""

    url: str
    detail: str
    moved_to: str | None


FIRST_UNREAD = text("""
SELECT url, state, reason, detail FROM pages WHERE job_id = :job_id AND state IN ('failed', 'redirected')
ORDER BY state, depth, number LIMIT 1
""")


def first_unread(session: Session, job_id: int) -> UnreadPage | None:
    """The first page that failed, else the first that was redirected; None: neither did any."""
    row = session.execute(FIRST_UNREAD, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    moved_to = row.detail if row.state == PageState.REDIRECTED else None
    return UnreadPage(row.url, row.detail or row.reason, moved_to)


def page_report(session: Session, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What became of the pages of a job, for ``show`` and ``report``; None when it reads none."""
    return count_pages(session, job["id"]).document if job["source_kind"] == SourceKind.PAGES else None


def count_pages(session: Session, job_id: int) -> PageCounts:
    """What became of the pages of a job so far."""
    counts = dict.fromkeys(PageState, 0)
    failed: dict[str, int] = {}
    refused = 0
    for state, reason, number in session.execute(COUNTS, {"job_id": job_id}):
        counts[PageState(state)] += number
        if state == PageState.FAILED:
            failed[reason] = number
        elif state == PageState.READ and reason:
            refused += number
    return PageCounts(
        counts[PageState.PENDING], counts[PageState.READ], counts[PageState.REDIRECTED], refused, failed
    )
