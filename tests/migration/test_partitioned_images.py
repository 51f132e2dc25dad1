"""``images`` in partitions: keys, arrows, readers and deletes do what they do on one table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models import CrawlJob, Image, closing
from models.database import transaction
from models.ending import drain_cancelled, rescue_chunk
from models.job_lifecycle import cancel_job
from models.lifecycle import checkpoint_chunk, settle_chunk
from models.recording import RESOLVED, SAME_BYTES
from models.settings import Settings, read_settings
from scheduler.broker import Broker
from scheduler.cli import main
from tests.support.crawling import (
    LEASE_SECONDS,
    accepted,
    change,
    check_books,
    expire_lease,
    new_job,
    query,
    start_next,
)
from tests.support.pages import Reader
from tests.support.partitioning import (
    NEWEST,
    PREPARE,
    SIZE,
    SWITCH,
    Parts,
    settled_job,
    type_whole_page,
    typist,
)
from tests.support.statements import explain
from tests.support.tenants import make_tenant, rows_of, valkey
from worker.app import PixtrawlCelery

PARTITIONS = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY oid"


@pytest.fixture
def operator(database_url: str, tmp_path: Path) -> Reader:
    """Somebody with psql on the database."""
    return typist(database_url, tmp_path)


@pytest.fixture
def parts(engine: Engine, operator: Reader) -> Parts:
    """A database on which the whole page was typed."""
    return type_whole_page(engine, operator)


def test_each_job_is_in_its_partition(engine: Engine, parts: Parts) -> None:
    """Rows go where their job belongs, and the page's own query tells how large each part is."""
    found = query(
        engine, "SELECT tableoid::regclass::text, crawl_job_id FROM images GROUP BY 1, 2 ORDER BY 2"
    )
    names = [name for (name,) in query(engine, PARTITIONS)]
    assert names == ["images_from_1", f"images_from_{parts.closed.id}", f"images_from_{parts.newest.id}"]
    assert found == list(zip(names, [parts.old.id, parts.closed.id, parts.newest.id], strict=True))
    ids = query(engine, "SELECT count(*), count(DISTINCT id) FROM images")
    assert ids == [(500 + 3 * (SIZE - 1),) * 2]


# What is wrong, SQLSTATE: what is inserted.
REFUSED = {
    ("position", "23505"): {"position": "0"},
    ("digest", "23505"): {
        "sha256": "(SELECT sha256 FROM images WHERE crawl_job_id = {job} AND position = 0)"
    },
    ("parent", "23503"): {"crawl_job_id": "{job} + 1"},
    ("CHECK", "23514"): {"sha256": "'short'"},
    ("id", "428C9"): {"id": "1"},
}
TOUCH = "UPDATE images SET width = 1 WHERE crawl_job_id = :id RETURNING updated_at > now()"


def test_every_rule_refuses_in_every_partition(engine: Engine, parts: Parts) -> None:
    """Position, digest, parent and CHECK hold as before; ids are given by the sequence alone."""
    for job in (parts.old, parts.closed, parts.newest):
        for (what, code), wrong in REFUSED.items():
            row = {
                "crawl_job_id": "{job}",
                "original_url": "'u'",
                "filename": "'f'",
                "position": "99",
            } | wrong
            values = ", ".join(row.values()).format(job=job.id)
            with pytest.raises(DBAPIError) as error:
                change(engine, f"INSERT INTO images ({', '.join(row)}) VALUES ({values})")
            assert getattr(error.value.orig, "pgcode", None) == code, what
        with transaction(engine) as session:
            assert set(session.execute(text(TOUCH), {"id": job.id}).scalars()) == {True}


def test_chunks_walk_on(engine: Engine, parts: Parts) -> None:
    """Checkpoint, duplicate, settle, rescue and cancel do in each partition what they do without any."""
    for job in (parts.old, parts.closed, parts.newest):
        change(engine, "UPDATE crawl_jobs SET priority = 10, paused_at = NULL WHERE id = :id", id=job.id)
        change(engine, "UPDATE job_chunks SET priority = 10 WHERE job_id = :id", id=job.id)
        lost = start_next(engine)
        assert lost.fence.job_id == job.id
        places = [candidate.position for candidate in lost.candidates]
        with transaction(engine) as session:
            tally = checkpoint_chunk(
                session,
                lost.fence,
                [accepted(places[0]), accepted(places[1], f"only {places[0]}")],
                LEASE_SECONDS,
            )
        assert tally is not None
        assert (tally.accepted, tally.failures) == (1, {"duplicate": 1})
        expire_lease(engine, lost.fence.chunk_id)
        with transaction(engine) as session:
            assert rescue_chunk(session, 3)
        again = start_next(engine)
        assert [candidate.position for candidate in again.candidates] == places[2:]
        with transaction(engine) as session:
            assert settle_chunk(session, again.fence, [accepted(place) for place in places[2:]])
    job = new_job(engine, (SIZE,), owner=parts.old)
    with transaction(engine) as session:
        assert cancel_job(session, job.id)
        assert drain_cancelled(session, job.id) == 1
    change(engine, "DELETE FROM images WHERE position IS NULL")
    check_books(engine)


def test_readers_see_one_table(engine: Engine, parts: Parts) -> None:
    """An image is found by its id alone, and a job's images by the relationship, wherever they are."""
    for job in (parts.old, parts.closed, parts.newest):
        [[image_id]] = query(
            engine, "SELECT id FROM images WHERE crawl_job_id = :id AND position = 0", id=job.id
        )
        with Session(engine) as session:
            image = session.get(Image, image_id)
            assert image is not None
            assert image.crawl_job_id == job.id
            images = session.get_one(CrawlJob, job.id).images
            assert image in images
            session.delete(image)
            session.commit()
        assert query(engine, "SELECT 1 FROM images WHERE id = :id", id=image_id) == []


STATEMENTS: dict[str, tuple[TextClause, dict[str, Any]]] = {
    "resolved": (RESOLVED, {"first": 0, "last": 9}),
    "same bytes": (SAME_BYTES, {"sha256": [b"a"]}),
    "batched delete": (closing.DELETE_IMAGES, {"limit": 10}),
    "cascade": (text("DELETE FROM images WHERE crawl_job_id = :job_id"), {}),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_job_is_looked_for_in_one_partition(name: str, engine: Engine, parts: Parts) -> None:
    """Whatever is asked about one job reads one partition, by an index."""
    statement, values = STATEMENTS[name]
    names = {name for name in ("job_id", "owner") if f":{name}" in str(statement)}
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        bound = statement.bindparams(**values, **dict.fromkeys(names, parts.closed.id))
        plan = explain(connection, bound)
    read = {index for index in plan.indexes if index.startswith("images")}
    assert read
    assert all(index.startswith(f"images_from_{parts.closed.id}_") for index in read), read


@pytest.fixture
def shell(
    services: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Settings, Broker]]:
    """An operator's environment, with a queue of its own: other tests leave messages in database 0."""
    settings = read_settings(
        home=tmp_path / "home",
        database_url=database_url,
        redis_url=f"{services.redis_url}?virtual_host=8",
        store_url=(tmp_path / "store").as_uri(),
        chunk_size=10,
    )
    for name, value in settings.environment().items():
        if name.startswith("PIXTRAWL_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("scheduler.broker.app", PixtrawlCelery("pixtrawl", set_as_current=False))
    broker = Broker(settings)
    valkey(settings).flushdb()
    yield settings, broker
    valkey(settings).flushdb()
    broker.close()


def test_deleting_reaches_every_partition(
    engine: Engine, operator: Reader, shell: tuple[Settings, Broker], tmp_path: Path
) -> None:
    """`users delete` and a cascade leave nothing of a user, and everything of the others."""
    other = settled_job(engine)
    operator.run(PREPARE)
    operator.run(SWITCH)
    change(engine, f"SELECT setval('crawl_jobs_id_seq', ({NEWEST}) - 1, false)")
    ada = make_tenant(engine, *shell, "ada@example.invalid", tmp_path, outs=(None, None))
    others = [other.id, settled_job(engine, other).id]
    count = "SELECT count(*), count(DISTINCT tableoid) FROM images WHERE crawl_job_id = ANY(:ids)"
    assert query(engine, count, ids=ada.job_ids)[0][1] == 2
    assert main(["users", "delete", ada.email, "--yes"]) == 0
    assert set(rows_of(engine, ada).values()) == {0}
    assert query(engine, count, ids=others) == [(2 * (SIZE - 1), 2)]
    change(engine, "DELETE FROM profiles WHERE id = :id", id=other.user_id)
    assert query(engine, "SELECT 1 FROM images UNION ALL SELECT 1 FROM crawl_jobs") == []
