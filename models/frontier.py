"""The arrows of pages: - → pending → read, redirected or failed. One step at a time moves those of a job.

Each takes a Session and never commits. What a step brought is written in the transaction that advances the job's
source, so a page that was read and what it brought are there together or not at all.
"""

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from models.arrays import array
from models.opt_outs import OptOut
from models.pages import PageKind, PageState
from models.recording import storable

LOSSES_MAX = 3
"""A page over which so many workers were lost in a row is not read any more."""


@dataclass(frozen=True, slots=True)
class PendingPage:
    """A page that waits to be read; or its images, which were found and not wanted yet (``rest``)."""

    key: bytes
    kind: PageKind
    url: str
    depth: int
    hops: int
    found_on: str | None
    pattern: bytes
    losses: int
    attempts: int
    refusals: int
    rest: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step begins with: pages in their order, how many wait in all, and what the job does not obey."""

    pages: Sequence[PendingPage]
    pending: int
    ignored_opt_outs: tuple[OptOut, ...]


@dataclass(frozen=True, slots=True)
class NewPage:
    """A page that was found."""

    key: bytes
    kind: PageKind
    url: str
    depth: int
    hops: int
    found_on: str | None
    pattern: bytes


@dataclass(slots=True)
class ReadPage:
    """What became of a page in a step. ``rest`` is what of its images was not wanted: then it stays pending."""

    key: bytes
    state: PageState
    url: str
    hops: int = 0
    attempts: int = 0
    reason: str | None = None
    http_status: int | None = None
    detail: str | None = None
    evidence: Mapping[str, Any] | None = None
    images: int = 0
    fresh: bool = False
    rest: tuple[Mapping[str, Any], ...] = ()


TAKE = text("""
WITH next AS (
    SELECT key, depth, number, losses FROM pages WHERE job_id = :job_id AND state = 'pending'
    ORDER BY depth, number LIMIT :limit),
suspect AS (SELECT depth, number FROM next WHERE losses > 0 ORDER BY depth, number LIMIT 1),
first AS (SELECT depth, number FROM next ORDER BY depth, number LIMIT 1)
UPDATE pages p SET losses = p.losses + 1 FROM next n
WHERE p.job_id = :job_id AND p.key = n.key AND ((n.depth, n.number) = (SELECT depth, number FROM first)
    OR NOT EXISTS (SELECT FROM suspect s WHERE (s.depth, s.number) <= (n.depth, n.number)))
RETURNING p.number, p.key, p.kind, p.url, p.depth, p.hops, p.found_on, p.pattern, p.losses, p.attempts,
    p.refusals, p.rest
""")
PENDING = text("""
SELECT j.ignored_opt_outs, (SELECT count(*) FROM pages p WHERE p.job_id = j.id AND p.state = 'pending') AS pending
FROM crawl_jobs j WHERE j.id = :job_id
""")


def take_pages(session: Session, job_id: int, limit: int) -> Taken:
    """pending → pending, with a step that has begun: the next pages by depth. One over which a worker was lost is
    taken alone, so that what it does to its worker costs no other page its turn.
    """
    job = session.execute(PENDING, {"job_id": job_id}).one_or_none()
    if job is None:
        return Taken((), 0, ())
    rows = session.execute(TAKE, {"job_id": job_id, "limit": limit}).all()
    pages = [_read(row) for row in sorted(rows, key=lambda row: (row.depth, row.number))]
    return Taken(pages, job.pending, tuple(map(OptOut, job.ignored_opt_outs)))


def _read(row: Row[Any]) -> PendingPage:
    return PendingPage(
        key=bytes(row.key),
        kind=PageKind(row.kind),
        url=row.url,
        depth=row.depth,
        hops=row.hops,
        found_on=row.found_on,
        pattern=bytes(row.pattern),
        losses=row.losses - 1,
        attempts=row.attempts,
        refusals=row.refusals,
        rest=_unpack(row.rest),
    )


RELEASE = text("""
UPDATE pages p SET losses = 0, attempts = p.attempts + new.attempts, refusals = p.refusals + new.refusals
FROM unnest(CAST(:keys AS bytea[]), CAST(:attempts AS int[]), CAST(:refusals AS int[]))
    AS new (key, attempts, refusals)
WHERE p.job_id = :job_id AND p.key = new.key AND p.state = 'pending'
""")


class Tries(NamedTuple):
    """What a step tried of a page in vain: transfers that failed, and times that its host asked to wait."""

    attempts: int = 0
    refusals: int = 0


def release_pages(session: Session, job_id: int, tried: Mapping[bytes, Tries]) -> None:
    """pending → pending: a step has ended that did not read these."""
    keys = sorted(tried)
    parameters = {
        "keys": array(keys),
        "attempts": array(tried[key].attempts for key in keys),
        "refusals": array(tried[key].refusals for key in keys),
    }
    session.execute(RELEASE, {"job_id": job_id, **parameters})


END = text("""
UPDATE pages p SET state = new.state, url = new.url, hops = new.hops, attempts = new.attempts, losses = 0,
    reason = new.reason, http_status = new.http_status, detail = new.detail,
    evidence = CAST(new.evidence AS jsonb), images = new.images, fresh = p.fresh OR new.fresh, rest = new.rest,
    ended_at = CASE WHEN new.state = 'pending' THEN NULL ELSE now() END
FROM unnest(CAST(:keys AS bytea[]), CAST(:states AS text[]), CAST(:urls AS text[]), CAST(:hops AS int[]),
    CAST(:attempts AS int[]), CAST(:reasons AS text[]), CAST(:statuses AS int[]), CAST(:details AS text[]),
    CAST(:evidence AS text[]), CAST(:images AS int[]), CAST(:fresh AS int[]), CAST(:rests AS bytea[]))
    AS raw (key, state, url, hops, attempts, reason, http_status, detail, evidence, images, is_fresh, rest)
    CROSS JOIN LATERAL (SELECT raw.*, raw.is_fresh = 1 AS fresh) AS new
WHERE p.job_id = :job_id AND p.key = new.key AND p.state = 'pending'
""")


def end_pages(session: Session, job_id: int, pages: Collection[ReadPage]) -> None:
    """pending → read, redirected or failed; or pending again, at another URL or with images that are left."""
    ordered = sorted(pages, key=lambda page: page.key)
    columns: dict[str, Sequence[object]] = {
        "keys": [page.key for page in ordered],
        "states": [page.state.value for page in ordered],
        "urls": [page.url for page in ordered],
        "hops": [page.hops for page in ordered],
        "attempts": [page.attempts for page in ordered],
        "reasons": [page.reason for page in ordered],
        "statuses": [page.http_status for page in ordered],
        "details": [_storable(page.detail) for page in ordered],
        "evidence": [page.evidence and json.dumps(storable(page.evidence)) for page in ordered],
        "images": [page.images for page in ordered],
        "fresh": [int(page.fresh) for page in ordered],
        "rests": [_pack(page.rest) for page in ordered],
    }
    session.execute(END, {"job_id": job_id} | {name: array(values) for name, values in columns.items()})


ADD = text("""
INSERT INTO pages (job_id, key, number, kind, url, depth, hops, found_on, pattern)
SELECT :job_id, key, :before + place, kind, url, depth, hops, found_on, pattern
FROM unnest(CAST(:keys AS bytea[]), CAST(:kinds AS text[]), CAST(:urls AS text[]), CAST(:depths AS int[]),
    CAST(:hops AS int[]), CAST(:found_on AS text[]), CAST(:patterns AS bytea[]))
    WITH ORDINALITY AS new (key, kind, url, depth, hops, found_on, pattern, place)
ON CONFLICT DO NOTHING
""")


def add_pages(session: Session, job_id: int, before: int, pages: Sequence[NewPage]) -> None:
    """- → pending, numbered in their order behind the ``before`` pages that the job knows; one of these is left as
    it is.
    """
    columns: dict[str, Sequence[object]] = {
        "keys": [page.key for page in pages],
        "kinds": [page.kind.value for page in pages],
        "urls": [page.url for page in pages],
        "depths": [page.depth for page in pages],
        "hops": [page.hops for page in pages],
        "found_on": [page.found_on for page in pages],
        "patterns": [page.pattern for page in pages],
    }
    session.execute(
        ADD, {"job_id": job_id, "before": before} | {name: array(values) for name, values in columns.items()}
    )


KNOWN = text("SELECT key FROM pages WHERE job_id = :job_id AND key = ANY(CAST(:keys AS bytea[]))")


def known_pages(session: Session, job_id: int, keys: Collection[bytes]) -> set[bytes]:
    """Which of these pages a job knows."""
    found = session.execute(KNOWN, {"job_id": job_id, "keys": array(sorted(keys))})
    return {bytes(key) for key in found.scalars()}


@dataclass(frozen=True, slots=True)
class PatternCount:
    """Pages of one pattern: all, and those read since the last that brought anything new."""

    pages: int
    dry: int


PATTERNS = text("""
SELECT p.pattern, count(*) AS pages,
    count(*) FILTER (WHERE p.state = 'read' AND p.number > coalesce(f.last, 0)) AS dry
FROM pages p JOIN (SELECT pattern, max(number) FILTER (WHERE fresh) AS last FROM pages
    WHERE job_id = :job_id AND pattern = ANY(CAST(:patterns AS bytea[])) GROUP BY pattern) f USING (pattern)
WHERE p.job_id = :job_id GROUP BY p.pattern
""")


def count_patterns(session: Session, job_id: int, patterns: Collection[bytes]) -> dict[bytes, PatternCount]:
    """What is known of the pages of each of these patterns, if any are."""
    rows = session.execute(PATTERNS, {"job_id": job_id, "patterns": array(sorted(patterns))})
    return {bytes(row.pattern): PatternCount(row.pages, row.dry) for row in rows}


START_HOSTS = text("SELECT url FROM pages WHERE job_id = :job_id AND kind = 'start'")


def start_urls(session: Session, job_id: int) -> list[str]:
    """URLs at which the crawl starts, and those that they redirected to."""
    return list(session.execute(START_HOSTS, {"job_id": job_id}).scalars())


DELETE = text("""
DELETE FROM pages WHERE (job_id, key) IN (
    SELECT p.job_id, p.key FROM pages p WHERE p.job_id = :job_id LIMIT :limit)
RETURNING number
""")


def delete_pages(session: Session, job_id: int, limit: int) -> int:
    """Delete at most ``limit`` pages of a job; how many."""
    return len(session.execute(DELETE, {"job_id": job_id, "limit": limit}).all())


def _storable(text: str | None) -> str | None:
    return text and str(storable(text))[:1000]


def _pack(rest: Sequence[Mapping[str, Any]]) -> bytes | None:
    return zlib.compress(json.dumps([dict(image) for image in rest]).encode(), 1) if rest else None


def _unpack(rest: bytes | None) -> tuple[Mapping[str, Any], ...]:
    return tuple(json.loads(zlib.decompress(rest))) if rest else ()
