"""Writing outcomes: images and failures once per position, and everything that counts them.

Part of a lifecycle arrow's transaction, with the chunk locked; never commits. Lock order: chunk, images in
sha256 order, job, account, usage metrics.
"""

import json
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.about import NAMES, About
from models.arrays import array
from models.jobs import OPEN_ENDED
from models.outcomes import Accepted, Outcome, Reason, Refused


@dataclass(frozen=True, slots=True)
class Tally:
    """What one transaction adds to the counters. Sizes in bytes."""

    accepted: int = 0
    failures: Mapping[str, int] | None = None
    downloaded: int = 0
    stored_bytes: int = 0
    wire_bytes: int = 0

    @property
    def failed(self) -> int:
        """Candidates refused."""
        return sum((self.failures or {}).values())


def record_outcomes(session: Session, job_id: int, chunk_id: int, outcomes: Sequence[Outcome]) -> Tally:
    """Insert the images, turn those whose bytes the job already has into ``duplicate``, insert the failures."""
    accepted = [outcome for outcome in outcomes if isinstance(outcome, Accepted)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    inserted = insert_images(session, job_id, chunk_id, accepted)
    images = [image for image in accepted if image.position in inserted]
    again = [image for image in accepted if image.position not in inserted]
    downloaded = len(accepted) + sum(failure.downloaded for failure in refused)
    refused += duplicates(session, job_id, again)
    insert_failures(session, job_id, chunk_id, refused)
    return Tally(
        accepted=len(images),
        failures=Counter(failure.reason.value for failure in refused),
        downloaded=downloaded,
        stored_bytes=sum(image.file_size for image in images),
        wire_bytes=sum(outcome.wire_bytes for outcome in outcomes),
    )


INSERT_IMAGES = text("""
INSERT INTO images (crawl_job_id, chunk_id, position, original_url, filename, storage_url, width, height,
    file_size, format, sha256, perceptual_hash, orientation, final_url, fetched_at, http_status, attempts,
    elapsed_ms, keyword, source_page, provider, licence, creator, metadata)
SELECT :job_id, :chunk_id, * FROM unnest(
    CAST(:position AS int[]), CAST(:original_url AS text[]), CAST(:filename AS text[]),
    CAST(:storage_url AS text[]), CAST(:width AS int[]), CAST(:height AS int[]), CAST(:file_size AS int[]),
    CAST(:format AS text[]), CAST(:sha256 AS bytea[]), CAST(:perceptual_hash AS bigint[]),
    CAST(:orientation AS smallint[]), CAST(:final_url AS text[]), CAST(:fetched_at AS timestamptz[]),
    CAST(:http_status AS smallint[]), CAST(:attempts AS smallint[]), CAST(:elapsed_ms AS int[]),
    CAST(:keyword AS text[]), CAST(:source_page AS text[]), CAST(:provider AS text[]), CAST(:licence AS text[]),
    CAST(:creator AS text[]), CAST(:metadata AS jsonb[]))
ON CONFLICT DO NOTHING RETURNING position
""")
IMAGE_COLUMNS = (
    "position",
    "original_url",
    "filename",
    "storage_url",
    "width",
    "height",
    "file_size",
    "format",
    "sha256",
    "perceptual_hash",
    "orientation",
    "final_url",
    "fetched_at",
    "http_status",
    "attempts",
    "elapsed_ms",
)


def insert_images(session: Session, job_id: int, chunk_id: int, images: Iterable[Accepted]) -> set[int]:
    """Insert in sha256 order, so that chunks with the same bytes wait for each other in one order.

    Returns the positions that are now images.
    """
    ordered = sorted(images, key=lambda image: (image.sha256, image.position))
    if not ordered:
        return set()
    columns = {name: array(storable(getattr(image, name)) for image in ordered) for name in IMAGE_COLUMNS}
    columns |= about_columns([image.about or UNKNOWN for image in ordered])
    rows = session.execute(INSERT_IMAGES, {"job_id": job_id, "chunk_id": chunk_id, **columns})
    return set(rows.scalars())


UNKNOWN = About()
PROVIDER_LENGTH_MAX = 50


def about_columns(abouts: Sequence[About]) -> dict[str, str]:
    """What is known of images besides their bytes, a parameter for each column."""
    columns = {name: array(storable(getattr(about, name)) for about in abouts) for name in NAMES}
    columns["provider"] = array(
        about.provider and storable(about.provider[:PROVIDER_LENGTH_MAX]) for about in abouts
    )
    columns["metadata"] = array(
        json.dumps(storable(about.metadata), allow_nan=False) if about.metadata else None for about in abouts
    )
    return columns


def storable(value: Any) -> Any:
    """A value without what PostgreSQL cannot hold: NUL and lone surrogates in text, which any URL or server may
    send, and in JSON numbers that are none.
    """
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {storable(name): storable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [storable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


SAME_BYTES = text("""
SELECT sha256, position FROM images WHERE crawl_job_id = :job_id AND sha256 = ANY(CAST(:sha256 AS bytea[]))
""")


def duplicates(session: Session, job_id: int, images: Sequence[Accepted]) -> list[Refused]:
    """The outcome ``duplicate`` for images whose bytes stand at another position of the job."""
    if not images:
        return []
    found = session.execute(SAME_BYTES, {"job_id": job_id, "sha256": array(image.sha256 for image in images)})
    first = {bytes(sha256): position for sha256, position in found}
    return [
        Refused(
            image.position,
            image.original_url,
            Reason.DUPLICATE,
            f"the same bytes as candidate {first[image.sha256]}",
            http_status=image.http_status,
            final_url=image.final_url,
            attempts=image.attempts,
            elapsed_ms=image.elapsed_ms,
        )
        for image in images
    ]


INSERT_FAILURES = text("""
INSERT INTO failures (job_id, chunk_id, position, position_end, url, reason, http_status, final_url, detail,
    evidence, attempts, elapsed_ms)
SELECT :job_id, :chunk_id, position, position, url, reason, http_status, final_url, detail, evidence, attempts,
    elapsed_ms
FROM unnest(
    CAST(:position AS int[]), CAST(:url AS text[]), CAST(:reason AS text[]), CAST(:http_status AS smallint[]),
    CAST(:final_url AS text[]), CAST(:detail AS text[]), CAST(:evidence AS jsonb[]), CAST(:attempts AS smallint[]),
    CAST(:elapsed_ms AS int[]))
    AS refused (position, url, reason, http_status, final_url, detail, evidence, attempts, elapsed_ms)
""")


FAILURE_COLUMNS = (
    "position",
    "url",
    "reason",
    "http_status",
    "final_url",
    "detail",
    "attempts",
    "elapsed_ms",
)


def insert_failures(session: Session, job_id: int, chunk_id: int, failures: Sequence[Refused]) -> None:
    """One row for each refused candidate. A second outcome for a position is refused by the primary key."""
    if not failures:
        return
    columns = {
        name: array(storable(getattr(failure, name)) for failure in failures) for name in FAILURE_COLUMNS
    }
    columns["evidence"] = array(document(failure) for failure in failures)
    session.execute(INSERT_FAILURES, {"job_id": job_id, "chunk_id": chunk_id, **columns})


def document(failure: Refused) -> str | None:
    """The evidence of a refusal as JSON, of text that jsonb can hold."""
    if failure.evidence is None:
        return None
    return json.dumps(storable(failure.evidence.document))


Range = tuple[int | None, int, int]
"""(chunk, first position, the position after the last one)"""

RESOLVED_POSITIONS = """
SELECT position FROM images WHERE crawl_job_id = :job_id AND position BETWEEN :first AND :last
UNION ALL
SELECT taken FROM failures, generate_series(position, position_end) AS taken
WHERE job_id = :job_id AND position BETWEEN :first AND :last
"""
"""Positions of a chunk that have an outcome. A failure's range never reaches beyond its chunk, but a retry may have
taken its beginning only.
"""
RESOLVED = text(RESOLVED_POSITIONS)
INSERT_UNRESOLVED = text(f"""
INSERT INTO failures (job_id, chunk_id, position, position_end, reason, detail)
SELECT :job_id, :chunk_id, candidate, candidate, :reason, :detail
FROM (SELECT generate_series(CAST(:first AS int), CAST(:last AS int)) EXCEPT ({RESOLVED_POSITIONS}))
    AS unresolved (candidate)
""")
INSERT_RANGES = text("""
INSERT INTO failures (job_id, chunk_id, position, position_end, reason, detail)
SELECT :job_id, chunk_id, first, after - 1, :reason, :detail FROM unnest(
    CAST(:chunk_ids AS int[]), CAST(:firsts AS int[]), CAST(:afters AS int[])) AS refused (chunk_id, first, after)
""")


RANGE_COLUMNS = ("chunk_ids", "firsts", "afters")


def refuse_unresolved(session: Session, job_id: int, positions: Range, reason: Reason, detail: str) -> None:
    """Give the candidates of a range that have no outcome yet one for ``reason``, a row each."""
    chunk_id, start, end = positions
    parameters = {"job_id": job_id, "chunk_id": chunk_id, "first": start, "last": end - 1}
    session.execute(INSERT_UNRESOLVED, {**parameters, "reason": reason.value, "detail": detail})


def refuse_ranges(
    session: Session, job_id: int, ranges: Sequence[Range], reason: Reason, detail: str
) -> None:
    """Give all candidates of ranges in which none has an outcome one for ``reason``, a row for each range."""
    if not ranges:
        return
    columns = {
        name: array(column) for name, column in zip(RANGE_COLUMNS, zip(*ranges, strict=True), strict=True)
    }
    session.execute(INSERT_RANGES, {"job_id": job_id, **columns, "reason": reason.value, "detail": detail})


COUNT_JOB = text(f"""
UPDATE crawl_jobs SET
    valid_images = valid_images + :accepted,
    failed_images = failed_images + :failed,
    downloaded_images = downloaded_images + :downloaded,
    stored_bytes = stored_bytes + :stored_bytes,
    wire_bytes = wire_bytes + :wire_bytes,
    failures = (SELECT coalesce(jsonb_object_agg(reason, count), '{{}}') FROM (
        SELECT reason, sum(count) AS count FROM (
            SELECT key AS reason, CAST(value AS int) AS count FROM jsonb_each_text(crawl_jobs.failures)
            UNION ALL
            SELECT key, CAST(value AS int) FROM jsonb_each_text(CAST(:failures AS jsonb))) AS both_sides
        GROUP BY reason HAVING sum(count) <> 0) AS summed),
    active_chunks = active_chunks + :active,
    completed_chunks = completed_chunks + :completed,
    failed_chunks = failed_chunks + :failed_chunks,
    progress = least(99, greatest(progress,
        CASE WHEN {OPEN_ENDED} THEN 0 ELSE 100 * CAST(
            valid_images + failed_images + :accepted + :failed AS bigint) / greatest(total_images, 1) END,
        100 * CAST(valid_images + :accepted AS bigint) / max_images))
WHERE id = :job_id
""")


def count_job(
    session: Session,
    job_id: int,
    tally: Tally,
    *,
    active: int = 0,
    completed: int = 0,
    failed_chunks: int = 0,
) -> None:
    """Add to the job's counters. ``active``, ``completed`` and ``failed_chunks`` are changes in chunks."""
    parameters = {
        "job_id": job_id,
        "accepted": tally.accepted,
        "failed": tally.failed,
        "downloaded": tally.downloaded,
        "stored_bytes": tally.stored_bytes,
        "wire_bytes": tally.wire_bytes,
        "failures": json.dumps(dict(tally.failures or {})),
        "active": active,
        "completed": completed,
        "failed_chunks": failed_chunks,
    }
    session.execute(COUNT_JOB, parameters)


COUNT_USAGE = text("""
INSERT INTO usage_metrics AS m (user_id, metric_date, images_processed, storage_used_bytes, bandwidth_used_bytes)
VALUES (:user_id, CAST(now() AT TIME ZONE 'utc' AS date), :accepted, :stored_bytes, :wire_bytes)
ON CONFLICT (user_id, metric_date) DO UPDATE SET
    images_processed = m.images_processed + excluded.images_processed,
    storage_used_bytes = m.storage_used_bytes + excluded.storage_used_bytes,
    bandwidth_used_bytes = m.bandwidth_used_bytes + excluded.bandwidth_used_bytes
""")


def count_usage(session: Session, user_id: uuid.UUID, tally: Tally) -> None:
    """Add to the user's row of the day (UTC), in exact bytes. The last lock of a transaction."""
    parameters = {
        "user_id": user_id,
        "accepted": tally.accepted,
        "stored_bytes": tally.stored_bytes,
        "wire_bytes": tally.wire_bytes,
    }
    session.execute(COUNT_USAGE, parameters)
