"""Sweeping on a real store and database: what no row names goes, what a row names or may come to name stays."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from structlog.testing import capture_logs

from models import sweeping
from models.database import transaction
from models.lifecycle import checkpoint_chunk, settle_chunk
from models.settings import Settings, read_settings
from models.sweeping import has_ended, kept_ended, overdue_sweeps
from scheduler.sweep import Sweeper
from tests.support.crawling import (
    LEASE_SECONDS,
    NewJob,
    accepted,
    change,
    new_job,
    query,
    read_job,
    refused,
    start_next,
)
from tests.support.processes import until
from tests.support.statements import explain
from worker.store import Store, open_store

OLD = 3600 * 24 * 40


@pytest.fixture
def settings(database_url, tmp_path) -> Settings:
    """A store of its own."""
    return read_settings(
        home=tmp_path / "home", database_url=database_url, store_url=(tmp_path / "store").as_uri()
    )


@pytest.fixture
def store(settings) -> Store:
    """The same store, here."""
    return open_store(settings.store)


@pytest.fixture
def path(settings) -> Callable[[str], Path]:
    """An object's file."""
    return lambda name: Path(settings.store.removeprefix("file://")) / name


def name_of(job_id: int, content: str) -> str:
    """The object of an image of the job."""
    return f"jobs/{job_id}/{hashlib.sha256(content.encode()).hexdigest()}.jpg"


def age(path: Path, seconds: float = OLD) -> None:
    """Let a file have been written so long ago."""
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def put(store: Store, path: Callable[[str], Path], name: str, seconds: float = OLD) -> None:
    """An object of so many seconds ago."""
    store.put(name, b"some bytes")
    age(path(name), seconds)


@pytest.fixture
def job(engine, settings, store, path) -> NewJob:
    """A job with two named objects, three strays and some files that are not ours; it ended long ago."""
    job = new_job(engine, [4], balance=100)
    change(
        engine,
        "UPDATE crawl_jobs SET store_url = :url WHERE id = :id",
        url=f"{settings.store}/jobs/{job.id}",
        id=job.id,
    )
    chunk = start_next(engine)
    outcomes = [accepted(0, "one"), accepted(1, "two"), refused(2), refused(3)]
    with transaction(engine) as session:
        settle_chunk(session, chunk.fence, outcomes)
    end(engine, job)
    for content in ("one", "two", "stray 1", "stray 2", "stray 3"):
        put(store, path, name_of(job.id, content))
    for name in (f"jobs/{job.id}/mine.jpg", f"jobs/{job.id}/below/{'a' * 64}.jpg"):
        put(store, path, name)
    path(f"jobs/{job.id}/{'b' * 64}.jpg#3").write_bytes(b"half")
    age(path(f"jobs/{job.id}/{'b' * 64}.jpg#3"))
    return job


def end(engine: Engine, job: NewJob, seconds: float = OLD) -> None:
    """Let a job have ended so long ago."""
    change(
        engine,
        """UPDATE crawl_jobs SET status = 'completed', source_state = 'exhausted',
            completed_at = now() - make_interval(secs => :seconds) WHERE id = :id""",
        seconds=seconds,
        id=job.id,
    )


def contents(path: Callable[[str], Path], job_id: int) -> set[str]:
    """The files of a job's own prefix."""
    folder = path(f"jobs/{job_id}")
    return {str(found.relative_to(folder)) for found in folder.rglob("*") if found.is_file()}


def kept(job_id: int) -> set[str]:
    """What must be left of the job: its images and what is not ours."""
    names = {Path(name_of(job_id, content)).name for content in ("one", "two")}
    return names | {"mine.jpg", f"below/{'a' * 64}.jpg"}


def test_what_no_row_names_goes_once_its_job_has_ended(engine, settings, job, store, path):
    """And half files with it; it is remembered, so nothing is listed again until the job ends once more."""
    sweeper = Sweeper(settings)
    with capture_logs() as logs:
        sweeper.sweep()
    assert contents(path, job.id) == kept(job.id)
    assert [(line["event"], line.get("objects")) for line in logs] == [("job_swept", 4)]
    swept_at = read_job(engine, job.id)["swept_at"]
    assert swept_at is not None
    sweeper.sweep()
    assert read_job(engine, job.id)["swept_at"] == swept_at
    with transaction(engine) as session:
        assert overdue_sweeps(session, 60) == 0
    # Reopened by a retry, and ended again.
    change(engine, "UPDATE crawl_jobs SET status = 'running', completed_at = NULL")
    with transaction(engine) as session:
        assert overdue_sweeps(session, 60) == 0
    change(engine, "UPDATE crawl_jobs SET swept_at = now() - interval '1 day'")
    end(engine, job, seconds=3600)
    put(store, path, name_of(job.id, "of the retry"))
    with transaction(engine) as session:
        assert overdue_sweeps(session, 60) == 1
    sweeper.sweep()
    assert contents(path, job.id) == kept(job.id)


def test_what_is_young_stays_and_is_looked_at_again(engine, settings, job, store, path):
    """By the store's own clock: whoever put it late, or another service that has yet to write its row."""
    put(store, path, name_of(job.id, "late"), seconds=60)
    Sweeper(settings).sweep()
    assert contents(path, job.id) == kept(job.id) | {Path(name_of(job.id, "late")).name}
    assert read_job(engine, job.id)["swept_at"] is None
    age(path(name_of(job.id, "late")))
    Sweeper(settings).sweep()
    assert contents(path, job.id) == kept(job.id)
    assert read_job(engine, job.id)["swept_at"] is not None


def test_a_row_of_another_service_names_by_url_alone(engine, settings, job, store, path):
    """One without a digest keeps its object, too."""
    name = name_of(job.id, "stray 1")
    change(
        engine,
        "INSERT INTO images (crawl_job_id, original_url, filename, storage_url) VALUES (:id, 'u', 'f', :url)",
        id=job.id,
        url=store.url(name),
    )
    Sweeper(settings).sweep()
    assert contents(path, job.id) == kept(job.id) | {Path(name).name}


def test_nothing_is_swept_while_a_worker_may_still_commit(engine, settings, store, path):
    """A job that runs, one that ended just now, and one that another service ended under its worker."""
    running, ended, ended_by_others = (new_job(engine, [4]) for _ in range(3))
    chunks = {chunk.fence.job_id: chunk for chunk in (start_next(engine) for _ in range(3))}
    for job in (running, ended, ended_by_others):
        url = f"{settings.store}/jobs/{job.id}"
        change(engine, "UPDATE crawl_jobs SET store_url = :url WHERE id = :id", url=url, id=job.id)
        put(store, path, name_of(job.id, "put, and soon committed"))
    with transaction(engine) as session:
        settle_chunk(session, chunks[ended.id].fence, [refused(place) for place in range(4)])
    end(engine, ended, seconds=60)
    end(engine, ended_by_others)
    Sweeper(settings).sweep()
    for job in (running, ended, ended_by_others):
        assert path(name_of(job.id, "put, and soon committed")).exists()
    with transaction(engine) as session:
        outcomes = [accepted(0, "put, and soon committed")]
        assert checkpoint_chunk(session, chunks[ended_by_others.id].fence, outcomes, LEASE_SECONDS)


def test_objects_of_a_job_that_is_being_deleted_are_left_to_its_deletion(engine, settings, job, path):
    """Also when that begins in the middle of a sweep: its report counts them."""
    before = contents(path, job.id)
    change(engine, "UPDATE crawl_jobs SET deleting_at = now()")
    with transaction(engine) as session:
        assert not has_ended(session, job.id)
    Sweeper(settings).sweep()
    assert contents(path, job.id) == before
    assert read_job(engine, job.id)["swept_at"] is None


def test_a_job_of_another_service_is_not_swept(engine, settings, job, path):
    """Whatever it has there is that service's."""
    before = contents(path, job.id)
    change(engine, "UPDATE crawl_jobs SET source_kind = NULL")
    Sweeper(settings).sweep()
    assert contents(path, job.id) == before


def test_what_another_jobs_row_has_the_digest_of_is_named_by_nobody(engine, settings, job, path):
    """That row's object is in its own job's folder."""
    other = new_job(engine, [1])
    change(
        engine,
        """INSERT INTO images (crawl_job_id, position, original_url, filename, sha256)
        VALUES (:id, 0, 'u', 'f', :sha256)""",
        id=other.id,
        sha256=hashlib.sha256(b"stray 1").digest(),
    )
    Sweeper(settings).sweep()
    assert contents(path, job.id) == kept(job.id)


def test_a_folder_of_the_users_choice_is_left_alone(engine, settings, job, store, path, tmp_path):
    """So is the prefix of a job into which another job stores, by whatever name."""
    out, link = tmp_path / "out", tmp_path / "link"
    change(engine, "UPDATE crawl_jobs SET store_url = :url WHERE id = :id", url=out.as_uri(), id=job.id)
    open_store(out.as_uri()).put(f"{'c' * 64}.jpg", b"somebody's")
    age(out / f"{'c' * 64}.jpg")
    other = new_job(engine, [1], store_url=None)
    change(
        engine,
        "UPDATE crawl_jobs SET store_url = :url WHERE id = :id",
        url=f"{settings.store}/jobs/{other.id}",
        id=other.id,
    )
    end(engine, other)
    put(store, path, name_of(other.id, "of a third job"))
    link.symlink_to(path(f"jobs/{other.id}"))
    new_job(engine, [1], store_url=link.as_uri())
    new_job(engine, [1], store_url="file://[no URL")
    Sweeper(settings).sweep()
    assert (out / f"{'c' * 64}.jpg").exists()
    assert Path(name_of(job.id, "stray 1")).name in contents(path, job.id)
    assert path(name_of(other.id, "of a third job")).exists()
    assert read_job(engine, job.id)["swept_at"] is not None
    assert read_job(engine, other.id)["swept_at"] is not None


def test_a_retry_waits_for_the_page_that_is_being_deleted(engine, settings, job, store, path):
    """Whoever reopens a job waits while strays are deleted; whoever has reopened it keeps them all."""
    connection = Sweeper(settings).engine.connect()
    reopened = threading.Event()

    def reopen() -> None:
        change(
            engine, "UPDATE crawl_jobs SET status = 'running', completed_at = NULL WHERE id = :id", id=job.id
        )
        reopened.set()

    thread = threading.Thread(target=reopen)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
    )
    with kept_ended(connection, job.id):
        thread.start()
        until(lambda: query(engine, waiting) == [(1,)], "a retry that waits")
        assert not reopened.is_set()
    thread.join(20)
    assert reopened.is_set()
    connection.close()
    before = contents(path, job.id)
    # The page was listed, and found to have strays, just before the job was reopened.
    end(engine, job)
    sweeper = Sweeper(settings)

    def reopen_now(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if "pg_advisory_lock" in statement:
            change(engine, "UPDATE crawl_jobs SET status = 'running', completed_at = NULL")

    event.listen(sweeper.engine, "before_cursor_execute", reopen_now)
    sweeper.sweep()
    assert contents(path, job.id) == before - {f"{'b' * 64}.jpg#3"}
    assert read_job(engine, job.id)["swept_at"] is None


class KilledError(Exception):
    """As if the process had died here."""


def test_a_sweep_that_dies_anywhere_is_finished_by_the_next(engine, settings, job, path):
    """Killed before its first statement, its second, and so on: nothing that a row names is gone at any time."""

    def die(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    for statements in range(100):
        left = statements
        sweeper = Sweeper(settings)
        event.listen(sweeper.engine, "before_cursor_execute", die)
        with suppress(KilledError):
            sweeper.sweep()
        assert kept(job.id) <= contents(path, job.id)
        if read_job(engine, job.id)["swept_at"] is not None:
            break
    assert statements > 5
    assert contents(path, job.id) == kept(job.id)
    assert query(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_many_objects_go_page_by_page(engine, settings, job, store, path, monkeypatch):
    """No statement sees more than a page, and what one listing missed the next finds."""
    monkeypatch.setattr("scheduler.sweep.PAGE", 7)
    for number in range(50):
        put(store, path, name_of(job.id, f"more {number}"))
    sweeper = Sweeper(settings)
    seen = []

    def count(_connection: Any, _cursor: Any, _statement: str, parameters: Any, *_: object) -> None:
        seen.append(len(parameters.get("digests", ())))

    event.listen(sweeper.engine, "before_cursor_execute", count)
    sweeper.sweep()
    assert max(seen) == 7
    assert contents(path, job.id) == kept(job.id)


# ---------------------------------------------------------------------------------------------------- inputs


def input_of(number: int) -> str:
    """The copy of an input."""
    return f"inputs/{number:08}-0000-4000-8000-000000000000.txt"


def test_copies_of_inputs_go_when_nobody_needs_them(engine, settings, store, path):
    """Those of jobs that ended long ago, which say so, and those without a job; never one that is named and young
    in its end, one that was just submitted, or a file that is not ours.
    """
    jobs = [
        new_job(engine, [1], source={"object": input_of(number), "files": []}, store_url="file:///elsewhere")
        for number in range(3)
    ]
    end(engine, jobs[1], seconds=3600 * 24 * 29)
    end(engine, jobs[2], seconds=3600 * 24 * 31)
    for number in range(4):
        put(store, path, input_of(number))
    put(store, path, input_of(4), seconds=3600 * 23)
    put(store, path, "inputs/notes.txt")
    Sweeper(settings).sweep()
    left = {str(found.name) for found in path("inputs").iterdir()}
    assert left == {Path(input_of(number)).name for number in (0, 1, 4)} | {"notes.txt"}
    sources = [read_job(engine, job.id)["source"] for job in jobs]
    assert [source.get("object") for source in sources] == [input_of(0), input_of(1), None]
    assert json.dumps(sources[2]) == '{"files": []}'


def test_the_day_to_forget_an_input_is_a_setting(engine, settings, store, path):
    """With none, the copy goes with the next sweep, however young; a crash after the row was written is made up
    for by its age.
    """
    job = new_job(engine, [1], source={"object": input_of(1)}, store_url="file:///elsewhere")
    end(engine, job, seconds=1)
    put(store, path, input_of(1), seconds=1)
    Sweeper(settings.model_copy(update={"input_days": 0.0})).sweep()
    assert not path(input_of(1)).exists()


@pytest.fixture
def hurried(monkeypatch) -> None:
    """A sweeper that looks all the time."""
    monkeypatch.setattr("scheduler.sweep.LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("hurried")
def test_it_works_beside_its_leader_and_ends_with_it(engine, settings, job, path):
    """In a thread of its own, that is gone when the leader is."""
    with Sweeper(settings) as sweeper:
        until(lambda: read_job(engine, job.id)["swept_at"], "a sweep")
        assert sweeper.thread.is_alive()
    assert not sweeper.thread.is_alive()
    assert contents(path, job.id) == kept(job.id)


@pytest.mark.usefixtures("hurried")
def test_a_store_that_fails_costs_its_job_time_only(engine, settings, job, path):
    """The job stays due, the others go on, and nothing ends the thread."""
    path(f"jobs/{job.id}").rename(path("elsewhere"))
    path(f"jobs/{job.id}").symlink_to(f"{job.id}")  # A link to itself.
    second = new_job(engine, [1], store_url="file:///elsewhere")
    end(engine, second, seconds=2000)
    with capture_logs() as logs, Sweeper(settings) as sweeper:
        until(lambda: read_job(engine, second.id)["swept_at"], "the other job")
        assert sweeper.thread.is_alive()
    assert [(line["event"], line["log_level"], line.get("job")) for line in logs] == [
        ("sweep_put_off", "warning", job.id)
    ]
    assert read_job(engine, job.id)["swept_at"] is None


def test_every_question_has_its_index(engine):
    """However many jobs, images and inputs there are: none of the tables is read from end to end."""
    job = new_job(engine, [1])
    change(
        engine,
        """INSERT INTO crawl_jobs (project_id, name, status, completed_at, swept_at, source_kind, source)
        SELECT project_id, 'old', 'completed', now() - interval '2 days', now() - interval '1 day', 'url_list',
            jsonb_build_object('object', 'inputs/' || n) FROM crawl_jobs, generate_series(1, 20000) n""",
    )
    change(
        engine,
        """INSERT INTO images (crawl_job_id, original_url, filename, position, sha256)
        SELECT :id + n % 3, 'u', 'f', n, sha256(CAST(CAST(n AS text) AS bytea)) FROM generate_series(1, 30000) n""",
        id=job.id,
    )
    change(engine, "ANALYZE")
    names = [f"inputs/{number}" for number in range(100)]
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1000)]
    asked = {
        sweeping.DUE: ({"seconds": 900, "skip": [1]}, "ix_crawl_jobs_unswept"),
        sweeping.OVERDUE: ({"seconds": 900}, "ix_crawl_jobs_unswept"),
        sweeping.NAMED: ({"job_id": job.id, "digests": digests}, "uq_images_crawl_job_id_sha256"),
        sweeping.NAMED_BY_URL: ({"job_id": job.id, "urls": names}, "uq_images_crawl_job_id_sha256"),
        sweeping.FORGET_INPUTS: ({"names": names, "seconds": 900}, "ix_crawl_jobs_input"),
        sweeping.INPUTS_IN_USE: ({"names": names}, "ix_crawl_jobs_input"),
    }
    with engine.connect() as connection:
        for statement, (parameters, index) in asked.items():
            plan = explain(connection, statement.bindparams(**parameters))
            assert index in plan.indexes, (str(statement), plan)
            assert "Seq Scan" not in plan.nodes, (str(statement), plan)
