"""From a source to chunks: advancing a job's cursor, and topping up.

Each takes a Session and never commits. A crash repeats a step; the guard on ``source_step`` makes that harmless.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.orm import Session

from models.candidates import PackedCandidate, pack_candidates
from models.jobs import DISCOVERED, SourceKind, SourceState
from models.outcomes import Candidate, Reason
from models.recording import Tally, count_job, refuse_ranges, storable

TOP_UP_MIN = 50
"""A top-up waits until so many more are wanted, or until nothing is unresolved: no chunks of one candidate."""


@dataclass(frozen=True, slots=True)
class SplittableJob:
    """A job whose source may yield more now. ``wanted`` candidates may still be handed out."""

    id: int
    source_kind: SourceKind
    source: Mapping[str, Any]
    step: int
    cursor: Mapping[str, Any]
    position: int
    priority: int
    total_chunks: int
    wanted: int


UNENDED_SOURCE = """j.source_kind IS NOT NULL AND j.source_state IN ('splitting', 'open')
    AND j.status IN ('pending', 'running') AND j.cancelled_at IS NULL"""
IS_DISCOVERED = f"j.source_kind IN ({', '.join(repr(kind.value) for kind in DISCOVERED)})"
SPLITTABLE_FIELDS = tuple(field.name for field in fields(SplittableJob))
SPLITTABLE_COLUMNS = """j.id, j.source_kind, j.source, j.source_step AS step, j.source_cursor AS cursor,
    j.source_position AS position, j.priority, j.total_chunks"""
WANTED_NOW = "j.max_images - j.source_position + j.failed_images"
WANTS_MORE = f"""{UNENDED_SOURCE} AND j.paused_at IS NULL AND {WANTED_NOW} > 0
    AND (j.source_state = 'splitting' OR {WANTED_NOW} >= {TOP_UP_MIN}
        OR j.source_position = j.valid_images + j.failed_images)"""
SPLITTABLE = text(f"""
SELECT {SPLITTABLE_COLUMNS}, {WANTED_NOW} AS wanted FROM crawl_jobs j
WHERE {WANTS_MORE} AND NOT {IS_DISCOVERED} AND j.id <> ALL(CAST(:skip AS int[]))
ORDER BY (j.priority, -j.id) >= (:priority, -:after), j.priority DESC, j.id LIMIT :limit
""")


BEFORE_ALL = (11, 0)
"""Stands before every (priority, job)."""


def splittable_jobs(
    session: Session, limit: int = 50, skip: Collection[int] = (), after: tuple[int, int] = BEFORE_ALL
) -> list[SplittableJob]:
    """Jobs that want candidates, without those to ``skip``: until accepted and unresolved ones together reach
    ``max_images``. They go round by priority and age, beginning behind ``after``, a (priority, job). Those whose
    source asks the web are discovery.py's.
    """
    parameters = {"limit": limit, "skip": list(skip)}
    rows = session.execute(SPLITTABLE, parameters | {"priority": after[0], "after": after[1]})
    return [read_splittable(row) for row in rows]


def read_splittable(row: Row[Any]) -> SplittableJob:
    """A row that begins with SPLITTABLE_COLUMNS and ``wanted``."""
    named = {name: getattr(row, name) for name in SPLITTABLE_FIELDS}
    return SplittableJob(**named | {"source_kind": SourceKind(row.source_kind)})


WANTED = text(f"SELECT FROM crawl_jobs j WHERE j.id = :job_id AND {UNENDED_SOURCE}")


def source_wanted(session: Session, job_id: int) -> bool:
    """Whether a job is still there and its source may be read."""
    return session.execute(WANTED, {"job_id": job_id}).first() is not None


AT_REST = """source_worker = NULL, source_lease_until = NULL, source_attempts = 0, source_asked_at = NULL,
    source_available_at = NULL, source_wait = NULL"""
"""What discovery.py keeps about a step goes with it."""
ADVANCE = text(f"""
UPDATE crawl_jobs SET source_step = source_step + 1, source_cursor = CAST(:cursor AS jsonb),
    source_position = source_position + :candidates, source_state = :state,
    total_images = greatest(total_images, source_position + :candidates),
    total_chunks = total_chunks + :chunks, source_detail = coalesce(:detail, source_detail), {AT_REST}
WHERE id = :job_id AND source_step = :step AND status IN ('pending', 'running') AND cancelled_at IS NULL
    AND source_worker IS NOT DISTINCT FROM :worker
    AND :candidates <= max_images - source_position + failed_images
RETURNING priority
""")
"""A retry may have taken candidates back since ``wanted`` was read: fewer are wanted then."""


def advance_source(
    session: Session,
    job: SplittableJob,
    cursor: Mapping[str, Any],
    state: SourceState,
    chunks: Sequence["NewChunk"],
    *,
    worker: str | None = None,
    detail: str | None = None,
) -> bool:
    """source at step k → k + 1, with its chunks - → pending; False when another step k was written meanwhile,
    fewer candidates are wanted by now, or the step is not that ``worker``'s (any more). ``detail`` says why the
    source ends here.
    """
    parameters = {
        "job_id": job.id,
        "step": job.step,
        "cursor": json.dumps(storable(cursor)),
        "state": state.value,
        "candidates": sum(len(chunk.candidates) for chunk in chunks),
        "chunks": len(chunks),
        "worker": worker,
        "detail": storable(detail),
    }
    priority = session.execute(ADVANCE, parameters).scalar_one_or_none()
    if priority is None:
        return False
    insert_chunks(session, job.id, priority, chunks)
    return True


SATISFIED = text(f"""
SELECT j.id, j.source_position, j.total_images FROM crawl_jobs j
WHERE {UNENDED_SOURCE} AND j.valid_images >= j.max_images ORDER BY j.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
""")
ABANDONED = text("""
SELECT j.id, j.source_position, j.total_images FROM crawl_jobs j
WHERE j.source_kind IS NOT NULL AND j.source_state IN ('splitting', 'open')
    AND j.status IN ('pending', 'running') AND j.cancelled_at IS NOT NULL
ORDER BY j.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
""")
END_SOURCE = text(f"""
UPDATE crawl_jobs SET source_state = :state, source_position = total_images,
    source_detail = concat_ws('; ', source->>'detail', :detail), {AT_REST}
WHERE id = :job_id
""")


def satisfy_source(session: Session) -> int | None:
    """source open → satisfied: ``max_images`` are accepted, candidates left over are ``not_needed``.

    Returns the job, or None when there is none.
    """
    return _end_source(session, SATISFIED, SourceState.SATISFIED, Reason.NOT_NEEDED, "max_images is met")


def abandon_source(session: Session) -> int | None:
    """source → exhausted: the job was cancelled, candidates not handed out are ``cancelled``."""
    return _end_source(session, ABANDONED, SourceState.EXHAUSTED, Reason.CANCELLED, "the job was cancelled")


BROKEN_OFF = text(f"""
SELECT j.id, j.source_position, j.total_images FROM crawl_jobs j
WHERE j.id = :job_id AND j.source_step = :step AND {UNENDED_SOURCE}
    AND (j.store_url = :root || '/jobs/' || j.id OR j.store_url NOT LIKE '%/jobs/' || j.id)
FOR NO KEY UPDATE
""")
"""In another store than the one that the job was submitted to nothing of it can be missing or damaged."""


def break_off_source(session: Session, job: SplittableJob, store_root: str, detail: str) -> bool:
    """source at step k → exhausted: the copy of its input is gone or damaged, candidates not handed out are
    ``cancelled``. False when the step was written meanwhile, or the job was submitted to another store.
    """
    guard = {"job_id": job.id, "step": job.step, "root": store_root}
    ended = _end_source(session, BROKEN_OFF, SourceState.EXHAUSTED, Reason.CANCELLED, detail, guard)
    return ended is not None


def _end_source(
    session: Session,
    select: TextClause,
    state: SourceState,
    reason: Reason,
    detail: str,
    parameters: Mapping[str, object] = MappingProxyType({}),
) -> int | None:
    row = session.execute(select, parameters).one_or_none()
    if row is None:
        return None
    left = row.total_images - row.source_position
    if left:
        refuse_ranges(session, row.id, [(None, row.source_position, row.total_images)], reason, detail)
        count_job(session, row.id, Tally(failures={reason.value: left}))
    session.execute(END_SOURCE, {"job_id": row.id, "state": state.value, "detail": detail})
    return int(row.id)


INSERT_CHUNK = text("""
INSERT INTO job_chunks (job_id, chunk_index, priority, size, candidates, image_range)
SELECT :job_id, chunk_index, :priority, size, candidates,
    jsonb_build_object('start', start, 'end', start + size)
FROM unnest(CAST(:indexes AS int[]), CAST(:starts AS int[]), CAST(:sizes AS int[]),
    CAST(:packed AS bytea[])) AS new (chunk_index, start, size, candidates)
""")


@dataclass(frozen=True, slots=True)
class NewChunk:
    """Candidates at consecutive positions from ``start``."""

    index: int
    start: int
    candidates: Sequence[Candidate | PackedCandidate]


def insert_chunks(session: Session, job_id: int, priority: int, chunks: Sequence[NewChunk]) -> None:
    """- → pending, for each of ``chunks``; the caller counts them in the job."""
    parameters = {
        "indexes": [chunk.index for chunk in chunks],
        "starts": [chunk.start for chunk in chunks],
        "sizes": [len(chunk.candidates) for chunk in chunks],
        "packed": [pack_candidates(chunk.candidates) for chunk in chunks],
    }
    session.execute(INSERT_CHUNK, {"job_id": job_id, "priority": priority, **parameters})
