"""The end check that every fault has in common: nothing lost, nothing twice, nothing left open. Only reads.

It finds; it repairs nothing. Each difference is one sentence.
"""

import hashlib
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from chaos.site import ACCEPTED
from chaos.system import Job, System
from models import audit
from models.outcomes import Reason

SHOWN_MAX = 5
"""Differences of one kind that are written out."""
OPEN_JOBS = "SELECT id, status FROM crawl_jobs WHERE completed_at IS NULL ORDER BY id"
OPEN_CHUNKS = """
SELECT id, job_id, status, attempt FROM job_chunks WHERE status NOT IN ('completed', 'failed') ORDER BY id
"""
OPEN_HOLDS = (
    "SELECT id, chunk_id FROM credit_transactions WHERE type = 'usage' AND status = 'pending' ORDER BY id"
)
JOB = "SELECT status, valid_images, total_images FROM crawl_jobs WHERE id = :job_id"
FAILED_CHUNKS = "SELECT id, job_id, error_message FROM job_chunks WHERE status = 'failed' ORDER BY id"


def all_ended(system: System) -> bool:
    """Whether no job and no chunk is open."""
    return not system.query(OPEN_JOBS) and not system.query(OPEN_CHUNKS)


def differences(system: System, jobs: Sequence[Job]) -> list[str]:
    """Everything that is not as it must be once all has ended; ``jobs`` were acknowledged."""
    found = [f"job {row.id} has not ended: it is {row.status}" for row in system.query(OPEN_JOBS)]
    found += [
        f"chunk {row.id} of job {row.job_id} has not ended: it is {row.status}, attempt {row.attempt}"
        for row in system.query(OPEN_CHUNKS)
    ]
    found += [f"hold {row.id} of chunk {row.chunk_id} is open" for row in system.query(OPEN_HOLDS)]
    found += [
        f"chunk {row.id} of job {row.job_id} failed: {row.error_message}"
        for row in system.query(FAILED_CHUNKS)
    ]
    found += broken_rules(system)
    with Session(system.engine) as session:
        for job in jobs:
            found += _job_differences(session, job)
    return shortened(found)


def broken_rules(system: System) -> list[str]:
    """The books, over the whole database, as `pixtrawl credits audit` compares them; right at any moment."""
    with Session(system.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        return [
            f"{one.rule}: {one.found} instead of {one.expected} ({one.user}, job {one.job}, chunk {one.chunk})"
            for one in audit.differences(session)
        ]


def _job_differences(session: Session, job: Job) -> Iterator[str]:
    """An acknowledged job: it is there, it completed, each candidate came to what it must, each image is stored."""
    row = session.execute(text(JOB), {"job_id": job.id}).one_or_none()
    if row is None:
        yield f"job {job.id} was acknowledged and is gone"
        return
    if row.status != "completed":
        yield f"job {job.id} was acknowledged and is {row.status}"
        return
    yield from _outcome_differences(job, audit.outcomes(session, job.id))
    for image in audit.images(session, job.id):
        body = read(image.url)
        if body is None:
            yield f"image {image.position} of job {job.id} has no object"
        elif hashlib.sha256(body).digest() != image.sha256:
            yield f"the object of image {image.position} of job {job.id} has other bytes"


def _outcome_differences(job: Job, found: dict[int, str]) -> Iterator[str]:
    accepted = Counter[str]()
    for position, line in enumerate(job.lines):
        outcome = found.get(position, "nothing")
        if line.group is not None and outcome in {ACCEPTED, Reason.DUPLICATE}:
            accepted[line.group] += outcome == ACCEPTED
        elif outcome != line.outcome:
            yield f"candidate {position} of job {job.id} ({line.url}): {outcome} instead of {line.outcome}"
    for group in {line.group for line in job.lines if line.group is not None}:
        if accepted[group] != 1:
            yield f"group {group} of equal bytes in job {job.id}: {accepted[group]} accepted instead of 1"


def read(url: str) -> bytes | None:
    """The bytes of an object in the system's folder; None when there is none."""
    try:
        return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).read_bytes()
    except FileNotFoundError:
        return None


def orphans(system: System) -> list[Path]:
    """Objects of images that no row names, which a crash between a put and its commit leaves."""
    rows = system.query("SELECT storage_url FROM images")
    named = {Path(urllib.parse.unquote(urllib.parse.urlsplit(row.storage_url).path)) for row in rows}
    return [path for path in (system.store / "jobs").rglob("*.*") if path not in named]


def shortened(found: list[str]) -> list[str]:
    """The first differences of each kind, and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for sentence in found:
        kinds.setdefault(re.sub(r"\d+", "", sentence)[:40], []).append(sentence)
    shown = []
    for sentences in kinds.values():
        shown += sentences[:SHOWN_MAX]
        if len(sentences) > SHOWN_MAX:
            shown.append(f"and {len(sentences) - SHOWN_MAX} more like the last")
    return shown
