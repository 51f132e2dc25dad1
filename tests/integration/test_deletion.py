"""``pixtrawl delete JOB``: one job goes, in small batches, whatever stops it; nothing of any other is touched."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError

from models.database import transaction
from models.reports import find_same_request, job_report
from models.settings import Settings, read_settings
from scheduler.batches import StoppedError
from scheduler.broker import Broker
from scheduler.cli import main
from scheduler.deletion import JobDeletion
from tests.support.crawling import change, check_money, query, queue_ready, read_job
from tests.support.processes import Command, until
from tests.support.tenants import (
    Tenant,
    World,
    look,
    make_tenant,
    missing_objects,
    read_messages,
    rows_of,
    valkey,
)
from worker.app import PixtrawlCelery

ADA, BOB = "ada@example.invalid", "bob@example.invalid"
JOB_TABLES = ("job_chunks", "images", "failures", "seen_keys", "pages", "crawl_jobs")


@pytest.fixture
def settings(services, database_url, tmp_path) -> Iterator[Settings]:
    """Settings with a queue of their own."""
    settings = read_settings(
        home=tmp_path / "home",
        database_url=database_url,
        redis_url=f"{services.redis_url}?virtual_host=9",
        store_url=(tmp_path / "store").as_uri(),
        chunk_size=10,
    )
    valkey(settings).flushdb()
    yield settings
    valkey(settings).flushdb()


@pytest.fixture
def broker(settings, monkeypatch) -> Iterator[Broker]:
    """The scheduler's sender, of an application of its own."""
    monkeypatch.setattr("scheduler.broker.app", PixtrawlCelery("pixtrawl", set_as_current=False))
    broker = Broker(settings)
    yield broker
    broker.close()


@pytest.fixture
def make(engine, settings, broker, tmp_path) -> Callable[..., Tenant]:
    """Make a tenant by e-mail; each job has a settled chunk, one whose worker was lost, one in the queue."""
    return lambda email, **options: make_tenant(engine, settings, broker, email, tmp_path, **options)


@pytest.fixture
def world(engine, settings, tmp_path) -> Callable[[], World]:
    """Everything there is."""
    return lambda: look(engine, settings, tmp_path)


@pytest.fixture
def shell(settings, monkeypatch) -> dict[str, str]:
    """The environment of an operator."""
    environment = settings.environment()
    for name, value in environment.items():
        if name.startswith("PIXTRAWL_"):
            monkeypatch.setenv(name, value)
    return environment


def deletion(settings: Settings, engine: Engine, job_id: int, **options: Any) -> JobDeletion:
    """A walk that says what it says to nobody, unless told otherwise."""
    return JobDeletion(
        settings, engine, job_id, **({"stop": threading.Event(), "say": lambda _: None} | options)
    )


def test_one_job_goes_and_its_owner_gets_back_what_was_held(engine, settings, shell, make, world, capsys):
    """Rows, objects, the copy of the input and messages; the other job of the same user and everybody else's stay.
    What was accepted stays charged, and a line of activity says who is gone.
    """
    make(BOB)
    ada = make(ADA, outs=(None, None))
    before, rows = world(), rows_of(engine, ada)
    first, second = ada.job_ids
    [(balance,)] = query(
        engine, "SELECT current_balance FROM credit_accounts WHERE user_id = :id", id=ada.user_id
    )
    capsys.readouterr()
    assert main(["delete", str(first), "--yes", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    after = world()
    # 8 settled, 3 of the lost chunk; two holds of 10 were open.
    assert (report["charged"], report["objects"], report["messages"], report["complete"]) == (11, 12, 3, True)
    [(now,)] = query(
        engine, "SELECT current_balance FROM credit_accounts WHERE user_id = :id", id=ada.user_id
    )
    assert now == balance + 17
    check_money(engine)
    left = rows_of(engine, ada)
    assert {table: left[table] for table in JOB_TABLES} == {table: rows[table] // 2 for table in JOB_TABLES}
    assert report["rows"] == {table: rows[table] // 2 for table in JOB_TABLES}
    assert len(before.files) - len(after.files) == 12
    assert missing_objects(engine, of_all=True) == []
    assert not (Path(settings.store.removeprefix("file://")) / "jobs" / str(first)).exists()
    assert sum(map(len, after.messages.values())) == 6
    assert query(
        engine,
        "SELECT user_id, resource_id, metadata->>'charged' FROM activity_logs WHERE action = 'crawl_job.deleted'",
    ) == [(ada.user_id, str(first), "11")]
    assert read_job(engine, second)["cancelled_at"] is None
    assert main(["delete", str(first), "--yes"]) == 2
    assert f"There is no job {first}" in capsys.readouterr().err


class KilledError(Exception):
    """As if the process had died here."""


def test_a_walk_that_dies_at_any_statement_goes_on(engine, settings, make, tmp_path):
    """Killed before its first statement, its second, and so on: the last walk finishes; meanwhile the ledger is
    right, and no row of a job that stays names a missing object.
    """
    out = (tmp_path / "both").as_uri()
    ada = make(ADA, outs=(out, out), same=4)
    going, staying = ada.job_ids
    change(
        engine, "UPDATE crawl_jobs SET status = 'completed', completed_at = now() WHERE id = :id", id=staying
    )
    kept = query(engine, "SELECT * FROM images WHERE crawl_job_id = :id ORDER BY id", id=staying)
    left = 0

    def die(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    for statements in range(0, 500, 3):
        left = statements
        event.listen(engine, "before_cursor_execute", die)
        try:
            walk = deletion(settings, engine, going, batch=4)
            with suppress(KilledError):
                walk.run()
        finally:
            event.remove(engine, "before_cursor_execute", die)
        check_money(engine)
        urls = [
            url for (url,) in query(engine, f"SELECT storage_url FROM images WHERE crawl_job_id = {staying}")
        ]
        assert all(Path(url.removeprefix("file://")).exists() for url in urls if url)
        if walk.deleted.complete:
            break
    assert walk.deleted.complete
    assert query(engine, "SELECT id FROM crawl_jobs") == [(staying,)]
    assert query(engine, "SELECT * FROM images ORDER BY id") == kept
    assert len(list((tmp_path / "both").iterdir())) == 11
    assert sum(map(len, read_messages(settings).values())) == 3


def test_a_job_that_is_being_deleted_stays_so(engine, settings, shell, make, capsys):
    """Stopped in between, it says what completes it; it is shown as such, found by no request, never reopened."""
    ada = make(ADA)
    [job_id] = ada.job_ids
    change(engine, "UPDATE crawl_jobs SET status = 'completed', completed_at = now()")
    stop = threading.Event()
    with pytest.raises(StoppedError):
        deletion(settings, engine, job_id, stop=stop, batch=2, show=lambda _: stop.set()).run()
    with transaction(engine) as session:
        job = job_report(session, job_id)
        assert job is not None
        row = read_job(engine, job_id)
        assert find_same_request(session, row["project_id"], row["fingerprint"]) is None
    assert job["deleting"]
    assert main(["jobs"]) == 0
    assert "being deleted" in capsys.readouterr().out
    with pytest.raises(IntegrityError, match=f"job {job_id} is being deleted"):
        change(engine, "UPDATE crawl_jobs SET status = 'running', completed_at = NULL")
    assert main(["delete", str(job_id), "--yes"]) == 0
    assert "credits stay charged" in capsys.readouterr().out
    assert not any(rows_of(engine, ada)[table] for table in JOB_TABLES)


def test_a_signal_stops_while_a_worker_is_waited_for(engine, settings, shell, make, tmp_path):
    """A worker has the chunk and its lease: it is waited for; Ctrl-C ends with 130 and the way on."""
    [job_id] = make(ADA).job_ids
    change(
        engine,
        "UPDATE job_chunks SET lease_until = now() + interval '1 min' WHERE status = 'processing'",
    )
    with Command(tmp_path / "run", shell, "delete", job_id, "--yes") as command:
        until(lambda: "Waiting until workers have let go of 1 chunk" in command.errors, "a chunk under way")
        command.interrupt()
        assert command.wait() == 130
    assert f"`pixtrawl delete {job_id}` completes it" in command.errors
    assert read_job(engine, job_id)["cancelled_at"] is not None
    assert queue_ready(engine) == []


def test_nobody_to_ask_is_a_refusal(settings, shell, make, world, tmp_path):
    """Without a terminal and without --yes nothing is deleted."""
    [job_id] = make(ADA).job_ids
    before = world()
    with Command(tmp_path / "run", shell, "delete", job_id) as command:
        assert command.wait() == 2
    assert "add --yes to delete job" in command.errors
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    assert world() == before


def test_a_folder_that_another_job_stores_into_waits(engine, settings, shell, make, capsys, tmp_path):
    """Also one of the same user: any object may be named by a row in a moment."""
    out = (tmp_path / "out").as_uri()
    ada = make(ADA, outs=(out, out))
    first, second = ada.job_ids
    assert main(["delete", str(first), "--yes"]) == 1
    assert f"Job {second} of {ADA} stores into the same folder" in capsys.readouterr().err
    change(
        engine, "UPDATE crawl_jobs SET status = 'completed', completed_at = now() WHERE id = :id", id=second
    )
    assert main(["delete", str(first), "--yes"]) == 0
    assert missing_objects(engine, of_all=True) == []
    assert main(["delete", str(second), "--yes"]) == 0
    assert list((tmp_path / "out").iterdir()) == []
