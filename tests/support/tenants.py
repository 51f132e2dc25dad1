"""Users with something in every table, in the store and in the queue; and all of it as it stands, to compare."""

import hashlib
import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kombu import Connection
from sqlalchemy import Engine, text

from models.database import transaction
from models.frontier import NewPage, add_pages
from models.job_lifecycle import notify
from models.lifecycle import StartedChunk, checkpoint_chunk, settle_chunk
from models.members import create_profile
from models.notifications import NotificationType
from models.outcomes import Accepted
from models.pages import PageKind
from models.seen import mark_seen, url_key
from models.settings import Settings
from scheduler.broker import Broker
from scheduler.enqueue import submit
from scheduler.leader import Leader
from scheduler.split import Splitter
from tests.support.catalog import read_columns, read_rows
from tests.support.crawling import LEASE_SECONDS, accepted, change, query, queue_ready, refused, start
from worker.store import open_store

CHUNK_SIZE = 10
TABLES = (
    "job_chunks",
    "images",
    "failures",
    "seen_keys",
    "pages",
    "crawl_jobs",
    "projects",
    "activity_logs",
    "notifications",
    "api_keys",
    "usage_metrics",
    "credit_transactions",
    "notification_preferences",
    "credit_accounts",
    "profiles",
)


@dataclass(frozen=True)
class Tenant:
    """A user and the jobs made for it."""

    email: str
    user_id: uuid.UUID
    job_ids: Sequence[int]


def make_tenant(
    engine: Engine,
    settings: Settings,
    broker: Broker,
    email: str,
    folder: Path,
    *,
    outs: Sequence[str | None] = (None,),
    same: int = 0,
) -> Tenant:
    """A user with a job for each of ``outs`` (the URL of a folder, None: in the store), and rows in all tables.

    Each job has a settled chunk, one whose worker was lost, and one whose message waits. ``same`` images of the
    settled chunk have the bytes that every tenant's have.
    """
    with transaction(engine) as session:
        user_id = create_profile(session, email, bonus=100_000, monthly_limit=100_000)
        assert user_id is not None
        notify(session, user_id, NotificationType.INFO, "system", "Welcome", "Hello", {})
        for statement in (
            "INSERT INTO api_keys (user_id, name, key_hash, key_prefix) VALUES (:id, 'k', CAST(:id AS text), 'px')",
            "INSERT INTO projects (user_id, name) VALUES (:id, 'Empty')",
        ):
            session.execute(text(statement), {"id": user_id})
    urls = folder / f"{email}.txt"
    job_ids = []
    for number, out in enumerate(outs):
        urls.write_text(
            "".join(f"http://images.test/{email}/{number}/{n}.jpg\n" for n in range(3 * CHUNK_SIZE))
        )
        submission = submit(settings, engine, [str(urls)], user=email, folder=out)
        work(engine, settings, broker, submission.job_id, email, same)
        job_ids.append(submission.job_id)
    return Tenant(email, user_id, job_ids)


def work(engine: Engine, settings: Settings, broker: Broker, job_id: int, email: str, same: int) -> None:
    """Split the job, and bring its three chunks to three states."""
    with engine.connect() as connection:
        Splitter(Leader(connection, settings), open_store(settings.store)).split()
    messages = [message for message in queue_ready(engine) if message.job_id == job_id]
    assert len(messages) == 3
    broker.send(messages)
    settled, lost = (start(engine, message) for message in messages[:2])
    assert settled is not None
    assert lost is not None
    contents = [f"same {n}" for n in range(same)] + [f"{email} {job_id} {n}" for n in range(8 - same)]
    images = [image(settled, n, content) for n, content in enumerate(contents)]
    more = [image(lost, n, f"{email} {job_id} more {n}") for n in range(3)]
    with transaction(engine) as session:
        outcomes = [*images, *(refused(place) for place in (8, 9))]
        pages = [NewPage(url_key(f"{n}"), PageKind.START, "http://a.test", 0, 0, None, b"") for n in range(3)]
        add_pages(session, job_id, 0, pages)
        mark_seen(session, job_id, [(url_key(f"http://images.test/{n}"), n) for n in range(3)])
        assert settle_chunk(session, settled.fence, outcomes) is not None
        assert checkpoint_chunk(session, lost.fence, more, LEASE_SECONDS) is not None
    change(
        engine,
        """INSERT INTO images (crawl_job_id, original_url, filename)
        SELECT :id, 'http://elsewhere.test', 'by-another-service.jpg' FROM generate_series(1, 3)""",
        id=job_id,
    )
    change(
        engine,
        "UPDATE job_chunks SET lease_until = now() - interval '1 s' WHERE id = :id",
        id=messages[1].chunk_id,
    )


def image(chunk: StartedChunk, number: int, content: str) -> Accepted:
    """An image of ``content`` bytes, stored where the chunk's job stores."""
    body = content.encode()
    name = f"{hashlib.sha256(body).hexdigest()}.jpg"
    url = open_store(chunk.store_url).put(name, body)
    position = chunk.candidates[number].position
    return replace(accepted(position, content), storage_url=url, filename=name, file_size=len(body))


@dataclass(frozen=True)
class World:
    """Every row of every table, every file under a folder, every message."""

    rows: dict[str, list[str]]
    files: dict[str, bytes]
    messages: dict[str, list[bytes]]


def look(engine: Engine, settings: Settings, folder: Path) -> World:
    """The world as it is."""
    with engine.connect() as connection:
        rows = read_rows(connection, read_columns(connection))
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt")
    inputs = (folder / "store" / "inputs").glob("*.txt")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in itertools.chain(paths, inputs)}
    return World(rows, files, read_messages(settings))


def valkey(settings: Settings) -> Any:
    """A client of the queue's server."""
    return Connection(settings.broker_url).default_channel.client


def read_messages(settings: Settings) -> dict[str, list[bytes]]:
    """Every list, by key."""
    client = valkey(settings)
    lists = sorted(client.scan_iter(_type="list"))
    return {key.decode(): client.lrange(key, 0, -1) for key in lists}


def rows_of(engine: Engine, tenant: Tenant) -> dict[str, int]:
    """How many rows of each table are a tenant's."""
    project = "project_id IN (SELECT id FROM projects WHERE user_id = :id)"
    jobs = f"IN (SELECT id FROM crawl_jobs WHERE {project})"
    where = {
        "job_chunks": f"job_id {jobs}",
        "images": f"crawl_job_id {jobs}",
        "failures": f"job_id {jobs}",
        "seen_keys": f"job_id {jobs}",
        "pages": f"job_id {jobs}",
        "crawl_jobs": project,
        "profiles": "id = :id",
    }
    return {
        table: query(
            engine,
            f"SELECT count(*) FROM {table} WHERE {where.get(table, 'user_id = :id')}",
            id=tenant.user_id,
        )[0][0]
        for table in TABLES
    }


def missing_objects(engine: Engine, *, of_all: bool) -> list[str]:
    """Objects that rows name and that are not there: rows of users who are not being deleted, or of all."""
    statement = """SELECT i.storage_url FROM images i JOIN crawl_jobs j ON j.id = i.crawl_job_id
        JOIN projects p ON p.id = j.project_id JOIN credit_accounts a ON a.user_id = p.user_id
        WHERE i.storage_url IS NOT NULL AND (:of_all OR a.closing_at IS NULL)"""
    urls = [url for (url,) in query(engine, statement, of_all=of_all)]
    return [url for url in urls if not Path(url.removeprefix("file://")).exists()]
