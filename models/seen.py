"""What a job has seen of its source: a short key for each URL (or digest), and which candidate was the first.

In PostgreSQL and not in memory, so that ten million URLs need no more of it than ten. Takes a Session and never
commits.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.arrays import array
from models.base import Base
from models.outcomes import Candidate

KEY_BYTES = 16
"""Of sha256: two of a billion URLs share a key with a chance of 1 to 10^21."""


class SeenKey(Base):
    """One URL or digest that a source has yielded."""

    __tablename__ = "seen_keys"
    __table_args__ = (
        CheckConstraint(f"octet_length(key) = {KEY_BYTES}", name="key"),
        {"comment": "What a job's source has yielded, while it goes on: nothing is yielded twice."},
    )

    job_id: Mapped[int] = mapped_column(
        ForeignKey("crawl_jobs.id", ondelete="CASCADE"), primary_key=True, comment="Its job"
    )
    key: Mapped[bytes] = mapped_column(
        LargeBinary, primary_key=True, comment="First 16 bytes of sha256(kind, NUL, URL or digest)"
    )
    position: Mapped[int] = mapped_column(comment="Position of the first candidate that had it")


def url_key(url: str) -> bytes:
    """The key of a URL: capitals in scheme and host do not count, nor does a fragment, which is never sent."""
    sent = url.partition("#")[0]
    scheme, separator, rest = sent.partition("://")
    host, slash, path = rest.partition("/")
    return _key("url", f"{scheme.lower()}{separator}{host.lower()}{slash}{path}")


def digest_key(digest: str) -> bytes:
    """The key of content, by its digest (``sha1:hexadecimal``)."""
    return _key("digest", digest)


def _key(kind: str, value: str) -> bytes:
    return hashlib.sha256(f"{kind}\0{value}".encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


MARK = text("""
INSERT INTO seen_keys (job_id, key, position)
SELECT :job_id, * FROM unnest(CAST(:keys AS bytea[]), CAST(:positions AS int[]))
ON CONFLICT DO NOTHING RETURNING key
""")
LOOK = text(
    "SELECT key, position FROM seen_keys WHERE job_id = :job_id AND key = ANY(CAST(:keys AS bytea[]))"
)


def mark_seen(session: Session, job_id: int, keys: Sequence[tuple[bytes, int]]) -> dict[bytes, int]:
    """Remember keys with the positions of their candidates. Returns those that are not new, with the position at
    which each was seen first: before, or earlier in this call.

    In the transaction that advances the source; who finds that another step was written must roll back. Keys go in
    their own order, so two steps of one job, of which one will be refused, wait for each other and never both.
    """
    first: dict[bytes, int] = {}
    again = {}
    for key, position in keys:
        if first.setdefault(key, position) != position:
            again[key] = first[key]
    if not first:
        return {}
    ordered = sorted(first)
    positions = array(first[key] for key in ordered)
    new = session.execute(MARK, {"job_id": job_id, "keys": array(ordered), "positions": positions})
    old = first.keys() - {bytes(key) for key in new.scalars()}
    if old:
        found = session.execute(LOOK, {"job_id": job_id, "keys": array(sorted(old))})
        again |= {bytes(key): position for key, position in found}
    return again


def mark_repeats(session: Session, job_id: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates; those whose URL an earlier one has say so. Like ``mark_seen``, it is part of a step."""
    keys = {
        candidate.position: url_key(candidate.url) for candidate in candidates if candidate.problem is None
    }
    first = mark_seen(session, job_id, [(key, position) for position, key in keys.items()])
    return [
        candidate
        if (earlier := first.get(keys.get(candidate.position, b""), candidate.position)) == candidate.position
        else replace(candidate, duplicate_of=earlier)
        for candidate in candidates
    ]


KNOWN = text("SELECT key FROM seen_keys WHERE job_id = :job_id AND key = ANY(CAST(:keys AS bytea[]))")


def known_keys(session: Session, job_id: int, keys: Collection[bytes]) -> set[bytes]:
    """Those of ``keys`` that a job has seen. Changes nothing."""
    rows = session.execute(KNOWN, {"job_id": job_id, "keys": array(sorted(keys))})
    return {bytes(key) for key in rows.scalars()}


FORGET = text("""
DELETE FROM seen_keys WHERE (job_id, key) IN (
    SELECT s.job_id, s.key FROM seen_keys s WHERE s.job_id = :job_id LIMIT :limit)
RETURNING position
""")
FORGETTABLE = text("""
WITH RECURSIVE jobs AS (
    (SELECT job_id FROM seen_keys ORDER BY job_id LIMIT 1)
    UNION ALL
    SELECT (SELECT s.job_id FROM seen_keys s WHERE s.job_id > jobs.job_id ORDER BY s.job_id LIMIT 1)
    FROM jobs WHERE jobs.job_id IS NOT NULL)
SELECT j.id FROM jobs JOIN crawl_jobs j ON j.id = jobs.job_id
WHERE j.source_state = 'satisfied' OR (j.source_state = 'exhausted'
    AND (j.cancelled_at IS NULL OR j.source->>'object' IS NULL))
LIMIT 1
""")
"""From one job to the next by the primary key, without reading ten million keys. A cancelled job whose input is
still there may be retried, and then its source goes on.
"""


def forget_seen(session: Session, limit: int) -> int:
    """Delete at most ``limit`` keys of a job whose source has ended; how many."""
    job_id = session.execute(FORGETTABLE).scalar_one_or_none()
    return 0 if job_id is None else delete_seen(session, job_id, limit)


def delete_seen(session: Session, job_id: int, limit: int) -> int:
    """Delete at most ``limit`` keys of a job; how many."""
    return len(session.execute(FORGET, {"job_id": job_id, "limit": limit}).all())
