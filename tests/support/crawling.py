"""Moves chunks through the real arrows, a transaction each, and checks the books afterwards."""

import datetime
import hashlib
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from models import Profile, audit
from models.candidates import pack_candidates
from models.database import transaction
from models.jobs import SourceKind, SourceState
from models.lifecycle import StartedChunk, settle_chunk, settle_short_chunk, start_chunk
from models.outcomes import Accepted, Candidate, ImageFormat, Outcome, Reason, Refused
from models.queueing import Message
from models.recording import Tally
from scheduler.dispatch import queue_next
from tests.support.factories import create_chunk, create_job, create_profile, create_project
from tests.support.processes import until

LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class NewJob:
    """Ids of a job, its chunks and its owner."""

    id: int
    chunk_ids: Sequence[int]
    user_id: uuid.UUID
    account_id: uuid.UUID


def candidates(start: int, size: int) -> list[Candidate]:
    """Candidates at ``size`` positions from ``start``."""
    places = range(start, start + size)
    return [Candidate(place, f"http://images.test/{place}.jpg", place + 1) for place in places]


def accepted(position: int, content: object = None) -> Accepted:
    """A stored image of 100 bytes; equal ``content`` means equal bytes, and without any they are its own."""
    body = f"only {position}" if content is None else f"{content}"
    sha256 = hashlib.sha256(body.encode()).digest()
    url = f"http://images.test/{position}.jpg"
    return Accepted(
        position=position,
        original_url=url,
        final_url=url,
        sha256=sha256,
        perceptual_hash=-position,
        width=4,
        height=3,
        file_size=100,
        format=ImageFormat.JPEG,
        orientation=1,
        storage_url=f"file:///store/{sha256.hex()}.jpg",
        filename=f"{sha256.hex()}.jpg",
        fetched_at=datetime.datetime.now(datetime.UTC),
        wire_bytes=150,
        http_status=200,
        attempts=1,
        elapsed_ms=40,
    )


def refused(position: int, reason: Reason = Reason.HTTP_STATUS, **fields: Any) -> Refused:
    """A candidate without an image."""
    given = {"url": f"http://images.test/{position}.jpg", "detail": "as the test wants it", "wire_bytes": 7}
    return Refused(position=position, reason=reason, **(given | fields))


def new_job(
    engine: Engine,
    sizes: Iterable[int] = (10,),
    *,
    balance: int = 1000,
    monthly_limit: int = 1_000_000,
    owner: NewJob | None = None,
    priority: int = 5,
    **columns: Any,
) -> NewJob:
    """A job of ``owner``'s user, or of a new one, with a pending chunk for each of ``sizes``."""
    source = {"source_kind": SourceKind.URL_LIST, "source_state": SourceState.EXHAUSTED}
    columns = source | {"store_url": "file:///store"} | columns
    with Session(engine) as session:
        if owner is None:
            user = create_profile(session, balance=balance, monthly_limit=monthly_limit)
        else:
            user = session.get_one(Profile, owner.user_id)
        job = create_job(session, create_project(session, user), priority=priority, **columns)
        chunk_ids = []
        start = 0
        for size in sizes:
            packed = pack_candidates(candidates(start, size))
            chunk_ids.append(create_chunk(session, job, size, priority=priority, candidates=packed).id)
            start += size
        job.source_position = start
        assert user.credit_account is not None
        created = NewJob(job.id, chunk_ids, user.id, user.credit_account.id)
        session.commit()
    return created


def job_of(engine: Engine, urls: Sequence[str], store_url: str, *, balance: int = 1000) -> NewJob:
    """A job of one chunk with these URLs, the only one of its database."""
    job = new_job(engine, [len(urls)], balance=balance, source_kind="url_list", store_url=store_url)
    packed = pack_candidates([Candidate(place, url, place + 1) for place, url in enumerate(urls)])
    change(engine, "UPDATE job_chunks SET candidates = :packed", packed=packed)
    return job


def queue_ready(engine: Engine, limit: int = 16) -> list[Message]:
    """pending → queued with a hold, for as many chunks as the owners can pay."""
    with transaction(engine) as session:
        return queue_next(session, limit)


def start(engine: Engine, message: Message, worker: str = "worker@test") -> StartedChunk | None:
    """queued → processing, if this message is still wanted."""
    with transaction(engine) as session:
        return start_chunk(session, message.chunk_id, message.attempt, worker, LEASE_SECONDS)


def start_next(engine: Engine, worker: str = "worker@test") -> StartedChunk:
    """Queue and start the next ready chunk."""
    [message] = queue_ready(engine, 1)
    chunk = start(engine, message, worker)
    assert chunk is not None
    return chunk


def settle_run(engine: Engine, chunk: StartedChunk, outcomes: Sequence[Outcome]) -> Tally | None:
    """End a worker's run of a chunk as the worker does: short if its hold did not cover all."""
    with transaction(engine) as session:
        return (settle_short_chunk if chunk.unpaid else settle_chunk)(session, chunk.fence, outcomes)


def expire_lease(engine: Engine, chunk_id: int) -> None:
    """Let a worker's lease have ended a second ago."""
    change(engine, "UPDATE job_chunks SET lease_until = now() - interval '1 s' WHERE id = :id", id=chunk_id)


def change(engine: Engine, statement: str, **parameters: Any) -> None:
    """Commit one statement of a test's own, for what only time or an operator can do."""
    with transaction(engine) as session:
        session.execute(text(statement), parameters)


def query(engine: Engine, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Every row of one query."""
    with transaction(engine) as session:
        return [tuple(row) for row in session.execute(text(statement), parameters)]


def read(engine: Engine, statement: str, **parameters: Any) -> dict[str, Any]:
    """The only row of one query, by column."""
    with transaction(engine) as session:
        return dict(session.execute(text(statement), parameters).mappings().one())


def read_job(engine: Engine, job_id: int) -> dict[str, Any]:
    """A job's row."""
    return read(engine, "SELECT * FROM crawl_jobs WHERE id = :id", id=job_id)


def read_chunk(engine: Engine, chunk_id: int) -> dict[str, Any]:
    """A chunk's row."""
    return read(engine, "SELECT * FROM job_chunks WHERE id = :id", id=chunk_id)


def wait_for_blocked(engine: Engine) -> None:
    """Return once a session waits for a lock of another one."""
    blocked = """SELECT FROM pg_stat_activity
        WHERE cardinality(pg_blocking_pids(pid)) > 0 AND datname = current_database()"""
    until(lambda: bool(query(engine, blocked)), "a session that waits")


def balance_of(engine: Engine, job: NewJob) -> int:
    """Credits that the job's owner is free to spend."""
    return int(
        query(engine, "SELECT current_balance FROM credit_accounts WHERE id = :id", id=job.account_id)[0][0]
    )


# What models/audit.py cannot tell, since it may change later: {rule: query of what breaks it}.
RULES = {
    "a chunk in flight has a hold": """
        SELECT c.id FROM job_chunks c WHERE (c.status = 'processing' OR c.queued_at IS NOT NULL) AND NOT EXISTS (
            SELECT FROM credit_transactions t
            WHERE t.chunk_id = c.id AND t.type = 'usage' AND t.status = 'pending')""",
    "what is accepted is charged or held": """
        SELECT c.id FROM job_chunks c JOIN crawl_jobs j ON j.id = c.job_id
        WHERE c.accepted * j.unit_price > (
            SELECT coalesce(sum(-t.amount), 0) FROM credit_transactions t WHERE t.chunk_id = c.id
                AND t.type = 'usage' AND t.status IN ('completed', 'pending'))""",
    "a job has no more accepted or under way than max_images": """
        SELECT j.id FROM crawl_jobs j
        WHERE j.source_kind IS NOT NULL AND j.source_position - j.failed_images > j.max_images""",
    "a day's usage = the images and their bytes": """
        SELECT m.user_id, m.images_processed FROM usage_metrics m
        WHERE (m.images_processed, m.storage_used_bytes) <> (
            SELECT count(*), coalesce(sum(i.file_size), 0) FROM images i JOIN crawl_jobs j ON j.id = i.crawl_job_id
                JOIN projects p ON p.id = j.project_id WHERE p.user_id = m.user_id)""",
}


ACCOUNTS = frozenset(
    {"balance of an account", "usage of the month", "hold without a live chunk", "refunds of a job"}
)
MONEY = ACCOUNTS | {"charge of a chunk", "open holds of a chunk"}


def check_money(engine: Engine, rules: Collection[str] = MONEY) -> None:
    """What the audit says of credits alone: for tests that move them, or delete chunks, without any image."""
    with transaction(engine) as session:
        found = [found for found in audit.differences(session) if found.rule in rules]
    assert not found, found


def check_books(engine: Engine) -> None:
    """Every rule of the promise, over all rows of the database."""
    with transaction(engine) as session:
        found = list(audit.differences(session))
        broken = {rule: session.execute(text(query)).all() for rule, query in RULES.items()}
    assert not found, found
    assert not {rule: rows for rule, rows in broken.items() if rows}
