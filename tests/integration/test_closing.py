"""Deleting a user: everything of theirs goes, in small batches, whatever stops it; nothing of others is touched."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from sqlalchemy import Engine, event, text
from structlog.testing import capture_logs

from models import audit, closing
from models.credits import CreditError, Hold, grant, hold, spendable
from models.database import make_engine, transaction
from models.job_lifecycle import cancel_job
from models.reports import job_report, user_reports
from models.settings import Settings, read_settings
from models.splitting import splittable_jobs
from scheduler.batches import Deleted, StoppedError
from scheduler.broker import Broker, withdraw_messages
from scheduler.cli import main
from scheduler.closing import Closing
from scheduler.copying import RequestError
from scheduler.enqueue import submit
from scheduler.leader import Leader
from scheduler.rescue import drain_job, find_stopped
from scheduler.split import Splitter
from tests.support.crawling import (
    change,
    new_job,
    query,
    queue_ready,
    read_job,
    start,
    wait_for_blocked,
)
from tests.support.processes import Command, environment, started, until
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
from worker.store import open_store

ADA, BOB = "ada@example.invalid", "bob@example.invalid"


@pytest.fixture
def settings(services, database_url, tmp_path) -> Iterator[Settings]:
    """Settings with a queue of their own: other tests leave messages in database 0."""
    settings = read_settings(
        home=tmp_path / "home",
        database_url=database_url,
        redis_url=f"{services.redis_url}?virtual_host=7",
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
    """Make a tenant by e-mail."""
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


def close(settings: Settings, engine: Engine, tenant: Tenant, **options: Any) -> Closing:
    """A walk that says what it says to nobody, unless told otherwise."""
    given = {"stop": threading.Event(), "say": lambda _: None}
    return Closing(settings, engine, tenant.user_id, **(given | options))


def litter(settings: Settings, tenant: Tenant) -> None:
    """Leave in the jobs' own prefixes what crashes leave: objects without rows, half a file."""
    store = open_store(settings.store)
    for job_id in tenant.job_ids:
        store.put(f"jobs/{job_id}/{'a' * 64}.jpg", b"without a row")
        folder = Path(store.root.removeprefix("file://"), "jobs", str(job_id))
        (folder / f"{'b' * 64}.jpg#1").write_bytes(b"half")


# -------------------------------------------------------------------------------------------------- complete


def test_nothing_is_left_of_a_user_and_nobody_else_is_touched(
    engine, settings, shell, make, world, tmp_path, capsys
):
    """Rows, files and messages are afterwards what they were before the user came, and the figures say so."""
    make(BOB)
    before = world()
    ada = make(ADA, outs=(None, None, (tmp_path / "out").as_uri()))
    litter(settings, Tenant(ADA, ada.user_id, ada.job_ids[:2]))
    (tmp_path / "out" / "mine.png").write_bytes(b"of the user, and of no row")
    rows = rows_of(engine, ada)
    assert all(rows.values()), rows
    objects = len(world().files) - len(before.files)
    capsys.readouterr()
    assert main(["users", "delete", ADA, "--yes", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    after = world()
    assert after.files.pop("out/mine.png")
    assert after == before
    assert not any((tmp_path / "store" / "jobs" / str(job_id)).exists() for job_id in ada.job_ids)
    assert report["rows"] == rows | {"activity_logs": rows["activity_logs"] + 3}
    # Two half files and the user's own are no objects.
    assert (report["objects"], report["messages"], report["complete"]) == (objects - 3, 9, True)
    assert report["user"] == ADA
    assert main(["users", "delete", ADA, "--yes"]) == 2
    assert f"There is no user {ADA}" in capsys.readouterr().err


def test_a_profile_of_another_service_is_deleted(engine, settings, make, world):
    """One without account and preferences, or with jobs that store nowhere, goes like any other."""
    make(BOB)
    before = world()
    change(engine, "INSERT INTO profiles (email) VALUES (:email)", email=ADA)
    [(user_id,)] = query(engine, "SELECT id FROM profiles WHERE email = :email", email=ADA)
    statement = """WITH project AS (INSERT INTO projects (user_id, name) VALUES (:id, 'p') RETURNING id),
        job AS (INSERT INTO crawl_jobs (project_id, name, source, store_url)
            SELECT id, 'j', CAST(:source AS jsonb), :url FROM project RETURNING id),
        chunk AS (INSERT INTO job_chunks (job_id, chunk_index, status, lease_until, worker)
            SELECT id, 0, 'processing', 'infinity', 'theirs' FROM job)
        INSERT INTO images (crawl_job_id, original_url, filename, storage_url)
            SELECT id, 'http://x', 'x', 'https://cdn.test/x.jpg' FROM job"""
    for url in (None, "https://cdn.test", "file:///nowhere/at/all", "no URL"):
        source = json.dumps({"object": "../../etc/passwd"})
        change(engine, statement, id=user_id, url=url, source=source)
    closing = close(settings, engine, Tenant(ADA, user_id, []))
    closing.run()
    assert closing.deleted.rows["images"] == 4
    assert closing.deleted.missing_folders == ["https://cdn.test", "file:///nowhere/at/all", "no URL"]
    assert world() == before


# ------------------------------------------------------------------------------------------------- resumable


@contextmanager
def deletes_per_transaction(engine: Engine) -> Iterator[list[int]]:
    """PostgreSQL's own count of the rows that each transaction has deleted, cascades included."""
    counts: list[int] = []
    counting = "SELECT coalesce(sum(n_tup_del), 0) FROM pg_stat_xact_user_tables"

    def count(connection: Any) -> None:
        counts.append(int(connection.exec_driver_sql(counting).scalar_one()))
        # Otherwise the next transaction of this session within a second would count on from here.
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")

    event.listen(engine, "commit", count)
    try:
        yield counts
    finally:
        event.remove(engine, "commit", count)


@contextmanager
def rows_per_statement(engine: Engine) -> Iterator[list[int]]:
    """How many rows each statement has returned or changed: more is never in memory."""
    counts: list[int] = []

    def count(_connection: Any, cursor: Any, *_: object) -> None:
        counts.append(cursor.rowcount)

    event.listen(engine, "after_cursor_execute", count)
    try:
        yield counts
    finally:
        event.remove(engine, "after_cursor_execute", count)


def test_a_walk_that_stops_after_each_batch_goes_on(engine, settings, make, world, tmp_path):
    """No transaction deletes more than a batch, no statement returns more, and no row of anybody's prefix
    names a missing object at any stop.
    """
    make(BOB)
    before = world()
    ada = make(ADA, outs=(None, None))
    litter(settings, ada)
    owned = sum(rows_of(engine, ada).values())
    walks = 0
    own = make_engine(settings.sqlalchemy_url)
    with deletes_per_transaction(own) as deleted, rows_per_statement(own) as rows:
        complete = False
        while not complete:
            stop = threading.Event()
            walk = close(settings, own, ada, stop=stop, batch=7, show=lambda _, stop=stop: stop.set())
            with suppress(StoppedError):
                walk.run()
            complete = walk.deleted.complete
            assert missing_objects(engine, of_all=True) == []
            walks += 1
            assert walks < 200
    own.dispose()
    assert max(deleted) == 7
    assert max(rows) <= 7
    # Every row was deleted by name: no cascade took one. Cancelling had logged two more.
    assert sum(deleted) == owned + 2
    assert walks > 20
    assert world() == before


class KilledError(Exception):
    """As if the process had died here."""


def test_a_walk_that_dies_at_any_statement_goes_on(engine, settings, make, world, tmp_path):
    """Killed before its first statement, its second, and so on: the last walk finishes, and in between no
    row of a user who stays names a missing object.
    """
    make(BOB, outs=((tmp_path / "both").as_uri(),), same=3)
    change(engine, "UPDATE crawl_jobs SET status = 'completed', completed_at = now()")
    before = world()
    ada = make(ADA, outs=(None, (tmp_path / "both").as_uri()), same=3)
    left = 0

    def die(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    for statements in range(500):
        left = statements
        event.listen(engine, "before_cursor_execute", die)
        try:
            walk = close(settings, engine, ada, batch=11)
            with suppress(KilledError):
                walk.run()
        finally:
            event.remove(engine, "before_cursor_execute", die)
        assert missing_objects(engine, of_all=False) == []
        if walk.deleted.complete:
            break
    assert walk.deleted.complete
    assert statements > 20
    assert world() == before


def test_two_operators_at_once_do_it_together(engine, settings, make, world):
    """Two walks of one user end both, and each row is counted by one of them."""
    make(BOB)
    before = world()
    ada = make(ADA, outs=(None, None))
    owned = rows_of(engine, ada)
    walks = [close(settings, engine, ada, batch=4) for _ in range(2)]
    threads = [threading.Thread(target=walk.run) for walk in walks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(walk.deleted.complete for walk in walks)
    images = sum(walk.deleted.rows["images"] for walk in walks)
    assert images == owned["images"]
    assert world() == before


def test_the_user_of_an_embedded_home_begins_anew(tmp_path):
    """Deleted like any other; the next command makes an empty profile with its bonus."""
    shell = environment(tmp_path / "home")
    with Command(tmp_path, shell, "users", "delete", "local@pixtrawl.invalid", "--yes", "--json") as command:
        assert command.wait() == 0, command.errors
    deleted = json.loads(command.output)
    with Command(tmp_path, shell, "users", "list", "--json") as command:
        assert command.wait() == 0, command.errors
    [user] = json.loads(command.output)
    assert (user["email"], user["balance"]) == (deleted["user"], 1_000_000)
    assert user["id"] != deleted["id"]


def test_a_signal_stops_between_two_batches(engine, settings, shell, make, world, tmp_path):
    """Ctrl-C ends with exit code 130 and a sentence, `users list` shows it, and the same command completes it."""
    make(BOB)
    before = world()
    ada = make(ADA)
    change(
        engine,
        "UPDATE job_chunks SET lease_until = now() + interval '1 min' WHERE status = 'processing' AND job_id = :id",
        id=ada.job_ids[0],
    )
    with Command(tmp_path / "run", shell, "users", "delete", ADA, "--yes", "--json") as command:
        until(lambda: "Waiting until workers have let go of 1 chunk" in command.errors, "a chunk under way")
        command.interrupt()
        assert command.wait() == 130
    assert "Stopping after the batch" in command.errors
    assert f"`pixtrawl users delete {ADA}` completes it" in command.errors
    assert "Traceback" not in command.errors
    report = json.loads(command.output)
    assert (report["complete"], report["rows"]["job_chunks"]) == (False, 2)
    with transaction(engine) as session:
        [shown, other] = sorted(user_reports(session), key=lambda user: str(user["email"]))
    assert (shown["closing_at"] is None, other["closing_at"]) == (False, None)
    change(engine, "UPDATE job_chunks SET lease_until = now() WHERE job_id = :id", id=ada.job_ids[0])
    assert main(["users", "delete", ADA, "--yes"]) == 0
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    assert world() == before


def test_nobody_to_ask_is_a_refusal(engine, settings, shell, make, world):
    """Without a terminal and without --yes nothing is deleted."""
    make(ADA)
    before = world()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scheduler.cli", "users", "delete", ADA],
        env=shell,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "add --yes" in done.stderr
    assert world() == before


def answer(shell: dict[str, str], reply: bytes) -> tuple[int, str]:
    """Run the command on a terminal and answer its question; the exit code and what the terminal showed."""
    leader, follower = os.openpty()
    with started(
        *(sys.executable, "-P", "-m", "scheduler.cli", "users", "delete", ADA),
        env=shell | {"TERM": "xterm"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        os.write(leader, reply)
        shown = b""
        with suppress(OSError):  # Raised when the terminal is closed at the other end.
            while part := os.read(leader, 4096):
                shown += part
        process.wait(60)
    os.close(leader)
    return process.returncode, shown.decode()


def test_on_a_terminal_it_asks_and_shows_where_it_is(engine, settings, shell, make, world):
    """The question names what goes; no leaves everything, yes deletes it under a line of progress."""
    ada = make(ADA)
    before = world()
    code, shown = answer(shell, b"n\n")
    assert code == 1
    assert f"Delete {ADA} with 1 job in 2 projects, 11 images (" in shown
    assert "Nothing was deleted." in shown
    assert world() == before
    code, shown = answer(shell, b"y\n")
    assert code == 0
    assert f"\r\x1b[2KDeleting {ADA}: jobs " in shown
    assert f"{ADA}: deleted 1 job, 14 images" in shown
    assert not any(rows_of(engine, ada).values())


# -------------------------------------------------------------------------------------------------- folders


def digests(folder: Path) -> set[str]:
    """Names of the images in a folder."""
    return {path.name for path in folder.iterdir()}


def end_jobs(engine: Engine, tenant: Tenant) -> None:
    """Let a tenant's jobs have ended."""
    change(
        engine,
        "UPDATE crawl_jobs SET status = 'completed', completed_at = now() WHERE id = ANY(:ids)",
        ids=list(tenant.job_ids),
    )


def test_what_another_users_row_names_in_the_same_folder_stays(engine, settings, make, tmp_path):
    """Whatever the folder is called there: its own name, one through a link, or one inside the store."""
    for number, (theirs, ours) in enumerate(
        [("plain", "plain"), ("real", "link"), ("link2", "real2"), ("store/jobs/77", "store/jobs/77")]
    ):
        for name in (theirs, ours):
            path = tmp_path / name
            if name.startswith("link"):
                target = tmp_path / (ours if name == theirs else theirs)
                target.mkdir(exist_ok=True)
                path.symlink_to(target)
            else:
                path.mkdir(exist_ok=True, parents=True)
        bob = make(f"{number}{BOB}", outs=((tmp_path / theirs).as_uri(),), same=4)
        end_jobs(engine, bob)
        kept = digests(tmp_path / theirs)
        ada = make(f"{number}{ADA}", outs=((tmp_path / ours).as_uri(),), same=4)
        assert len(digests(tmp_path / theirs)) == len(kept) + 7
        walk = close(settings, engine, ada, batch=5)
        walk.run()
        assert digests(tmp_path / theirs) == kept, theirs
        assert walk.deleted.objects == 7 + 1  # With the copy of the input.
    assert missing_objects(engine, of_all=True) == []


def test_a_folder_inside_somebodys_own_prefix(engine, settings, make, tmp_path):
    """Neither the user whose prefix it is nor the one who chose it loses an object to the other's end."""
    bob = make(BOB, same=4)
    prefix = tmp_path / "store" / "jobs" / str(bob.job_ids[0])
    ada = make(ADA, outs=(prefix.as_uri(),), same=4)
    end_jobs(engine, bob)
    close(settings, engine, ada).run()
    assert missing_objects(engine, of_all=True) == []
    assert len(digests(prefix)) == 11
    eve = make("eve@example.invalid", outs=(prefix.as_uri(),), same=4)
    end_jobs(engine, eve)
    close(settings, engine, bob).run()
    assert missing_objects(engine, of_all=True) == []
    assert len(digests(prefix)) == 11


def test_a_folder_that_somebody_is_storing_into_waits(engine, settings, shell, make, capsys, tmp_path):
    """Any object may be named by a row in a moment, so that job stays, all else goes, and a later run ends it."""
    bob = make(BOB, outs=((tmp_path / "out").as_uri(),))
    kept = digests(tmp_path / "out")
    ada = make(ADA, outs=((tmp_path / "out").as_uri(), None))
    assert main(["users", "delete", ADA, "--yes"]) == 1
    said = capsys.readouterr().err
    assert f"Job {bob.job_ids[0]} of {BOB} stores into the same folder, {tmp_path}/out, as job" in said
    assert "run the command again when it has" in said
    left = rows_of(engine, ada)
    assert (left["crawl_jobs"], left["images"], left["credit_transactions"]) == (1, 14, 0)
    assert len(digests(tmp_path / "out")) == len(kept) + 11
    end_jobs(engine, bob)
    assert main(["users", "delete", ADA, "--yes"]) == 0
    assert digests(tmp_path / "out") == kept


def test_a_folder_that_is_not_here_is_said_and_not_made(engine, settings, make, tmp_path):
    """Its user may have moved it; the rows go, and the report names it."""
    ada = make(ADA, outs=((tmp_path / "out").as_uri(),))
    (tmp_path / "out").rename(tmp_path / "moved")
    said: list[str] = []
    walk = close(settings, engine, ada, say=said.append)
    walk.run()
    assert walk.deleted.missing_folders == [(tmp_path / "out").as_uri()]
    assert said == [f"{tmp_path}/out is not here: nothing in it is deleted."]
    assert not (tmp_path / "out").exists()
    assert len(digests(tmp_path / "moved")) == 11


def test_two_users_of_one_folder_can_be_deleted_at_once(engine, settings, make, world, tmp_path):
    """Neither waits for the other, and nothing is left that each had kept for the other."""
    before = world()
    both = [make(email, outs=((tmp_path / "out").as_uri(),), same=4) for email in (ADA, BOB)]
    for tenant in both:
        end_jobs(engine, tenant)
        with transaction(engine) as session:
            assert closing.close_account(session, tenant.user_id)
    for tenant in both:
        close(settings, engine, tenant).run()
    assert world() == before


# ------------------------------------------------------------------------------------------------- messages


def test_only_messages_without_a_row_are_withdrawn(engine, settings, make):
    """In any number of pages, from every priority; the others stay in their order, and so does what is not ours."""
    bob = make(BOB)
    client = valkey(settings)
    [(key, theirs)] = read_messages(settings).items()
    document = json.loads(theirs[0])

    def message(task_id: object, task: str = "crawl_chunk") -> bytes:
        return json.dumps(document | {"headers": {"id": task_id, "task": task}}).encode()

    strange = [
        b"no JSON",
        b"[]",
        b"{}",
        message("chunk-9.1", "another_task"),
        message("chunk-x.1"),
        message(7),
    ]
    keys = ["pixtrawl", f"{key[:-1]}9", key]
    for name in keys:
        client.delete(name)
        for number in range(40):
            client.rpush(name, theirs[number % 3], message(f"chunk-{10_000 + number}.{number}"))
            client.rpush(name, strange[number % len(strange)])
    expected = {
        name: [raw for raw in messages if b"chunk-10" not in raw]
        for name, messages in read_messages(settings).items()
    }

    def existing(ids: Any) -> set[int]:
        assert len(ids) <= 7
        with transaction(engine) as session:
            return closing.existing_chunks(session, ids)

    assert withdraw_messages(settings, existing, page=7) == 120
    assert read_messages(settings) == expected
    assert rows_of(engine, bob)["job_chunks"] == 3


def test_without_redis_nothing_begins(engine, settings, shell, make, world, monkeypatch, capsys):
    """It is asked first: exit code 3, one sentence, and everything is as before."""
    make(ADA)
    before = world()
    monkeypatch.setenv("PIXTRAWL_REDIS_URL", "redis://127.0.0.1:1/0")
    assert main(["users", "delete", ADA, "--yes"]) == 3
    said = capsys.readouterr().err
    assert "Nothing was deleted." in said
    assert "Redis cannot be used" in said
    assert world() == before


def test_redis_that_goes_away_is_asked_again_next_time(engine, settings, services, make, world, tmp_path):
    """The profile stays until the messages are gone, so that the same command finds it."""
    make(BOB)
    before = world()
    ada = make(ADA)
    link = tmp_path / "link"
    link.symlink_to(services.redis_url.removeprefix("redis+socket://"))
    through = settings.model_copy(
        update={"redis_url": type(settings.redis_url)(f"redis+socket://{link}?virtual_host=7")}
    )
    walk = close(through, engine, ada, show=lambda _: link.unlink(missing_ok=True))
    with pytest.raises(OperationalError):
        walk.run()
    assert walk.begun
    left = rows_of(engine, ada)
    assert (left["crawl_jobs"], left["profiles"], left["credit_transactions"] > 0) == (0, 1, True)
    assert sum(map(len, read_messages(settings).values())) == 6
    close(settings, engine, ada).run()
    assert world() == before


# ------------------------------------------------------------------------------------------ while it happens


def test_a_user_who_is_being_deleted_starts_nothing(engine, settings, shell, make, capsys, tmp_path):
    """No hold, no grant, no job; each is refused in a sentence, and reports call nothing a discrepancy."""
    ada = make(ADA)
    stop = threading.Event()
    with pytest.raises(StoppedError):
        close(settings, engine, ada, stop=stop, batch=4, show=lambda _: stop.set()).run()
    [(account_id,)] = query(engine, "SELECT id FROM credit_accounts WHERE user_id = :id", id=ada.user_id)
    with transaction(engine) as session:
        assert not hold(session, Hold(account_id, ada.user_id, ada.job_ids[0], 1000, 1, 1))
        assert spendable(session, account_id)[0] == 0
        with pytest.raises(CreditError, match="being deleted"):
            grant(session, ada.user_id, 5, description="More")
        assert closing.being_closed(session, ada.user_id)
        report = job_report(session, ada.job_ids[0])
        assert report is not None
        assert (report["status"], report["cancelled"]) == ("running", True)
    with pytest.raises(
        RequestError, match=f"{ADA} is being deleted: `pixtrawl users delete {ADA}` completes"
    ):
        submit(settings, engine, [str(tmp_path / f"{ADA}.txt")], user=ADA)
    assert not list((tmp_path / "store" / "inputs").glob("*"))[1:]
    assert main(["users", "list"]) == 0
    assert "being deleted" in capsys.readouterr().out
    change(
        engine,
        """WITH account AS (SELECT id, set_config('pixtrawl.closing_account', CAST(id AS text), true)
            FROM credit_accounts WHERE user_id = :id)
        DELETE FROM credit_transactions t USING account WHERE t.account_id = account.id AND t.type = 'bonus'""",
        id=ada.user_id,
    )
    with transaction(engine) as session:
        statement = audit.statement(session, ada.user_id)
    assert (statement.closing, statement.correct, statement.granted) == (True, True, 0)


WAITING = """SELECT count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()"""


@pytest.mark.parametrize(
    ("insert", "emptied", "delete"),
    [
        (
            "INSERT INTO job_chunks (job_id, chunk_index) SELECT id, 9 FROM crawl_jobs",
            (),
            lambda session, job: closing.delete_job(session, job.id),
        ),
        (
            "INSERT INTO crawl_jobs (project_id, name) SELECT id, 'late' FROM projects",
            ("crawl_jobs",),
            lambda session, job: closing.delete_projects(session, job.user_id, 10),
        ),
        (
            "INSERT INTO notifications (user_id, title, message) SELECT id, 't', 'm' FROM profiles",
            ("crawl_jobs", "projects"),
            lambda session, job: closing.delete_profile(session, job.user_id),
        ),
    ],
    ids=["job", "project", "profile"],
)
def test_what_comes_at_the_last_moment_is_waited_for_and_stays(engine, insert, emptied, delete):
    """Whoever deletes a job, a project or a profile locks it first, and looks at what hangs on it only then."""
    job = new_job(engine, [], balance=0)
    for table in emptied:
        change(engine, f"DELETE FROM {table}")

    def late() -> Any:
        with transaction(engine) as session:
            return delete(session, job)

    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            session.execute(text(insert))
            deleted = thread.submit(late)
            wait_for_blocked(engine)
        assert not deleted.result(10)
    assert query(engine, f"SELECT count(*) FROM {insert.split()[2]}") == [(1,)]


def test_a_submission_under_way_is_waited_for(engine, settings, make):
    """Whoever was told that an account is open has its job written before the account closes, and it is seen."""
    ada = make(ADA)
    with transaction(engine) as session:
        assert cancel_job(session, ada.job_ids[0])
    results: list[bool] = []

    def close_account() -> None:
        with transaction(engine) as session:
            results.append(closing.close_account(session, ada.user_id))

    thread = threading.Thread(target=close_account)
    with transaction(engine) as session:
        assert not closing.being_closed(session, ada.user_id)
        thread.start()
        until(lambda: query(engine, WAITING)[0][0] == 1, "the other transaction")
        session.execute(
            text(
                "INSERT INTO crawl_jobs (project_id, name) SELECT id, 'late' FROM projects WHERE name = 'Empty'"
            )
        )
    thread.join(10)
    assert results == [False]
    assert query(engine, "SELECT closing_at FROM credit_accounts") == [(None,)]
    close(settings, engine, ada).run()
    assert not any(rows_of(engine, ada).values())


def test_what_comes_meanwhile_goes_too(engine, settings, make, world):
    """Rows that other services write while the walk is under way, even a whole job, are found in the end."""
    make(BOB)
    before = world()
    ada = make(ADA)
    statements = [
        "INSERT INTO projects (user_id, name) VALUES (:id, 'Late')",
        "INSERT INTO crawl_jobs (project_id, name) SELECT max(id), 'Late' FROM projects WHERE user_id = :id",
        "INSERT INTO images (crawl_job_id, original_url, filename) SELECT max(id), 'http://x', 'x' FROM crawl_jobs",
        "INSERT INTO activity_logs (user_id, action) VALUES (:id, 'late')",
        "INSERT INTO notifications (user_id, title, message) VALUES (:id, 'late', 'late')",
    ]

    def write(deleted: Deleted) -> None:
        if deleted.rows["credit_transactions"]:
            while statements:
                change(engine, statements.pop(0), id=ada.user_id)

    walk = close(settings, engine, ada, show=write)
    walk.run()
    assert walk.deleted.rows["crawl_jobs"] == 2
    assert world() == before


@pytest.mark.parametrize("left", ["job_chunks", "images", "failures", "seen_keys", "pages"])
def test_nothing_is_deleted_before_what_hangs_on_it(engine, settings, make, left):
    """A job with one kind of rows, its project and its profile stay: their cascades would have no bound."""
    ada = make(ADA)
    job_id = ada.job_ids[0]
    tables = ("job_chunks", "images", "failures", "seen_keys", "pages")
    for table, column in zip(tables, ("job_id", "crawl_job_id", "job_id", "job_id", "job_id"), strict=True):
        if table != left:
            change(engine, f"DELETE FROM {table} WHERE {column} = :id", id=job_id)
    with transaction(engine) as session:
        assert not closing.delete_job(session, job_id)
        assert closing.delete_projects(session, ada.user_id, 10) == 1
        assert closing.delete_profile(session, ada.user_id) is None
    assert rows_of(engine, ada)["projects"] == 1


def test_the_scheduler_does_not_trip_over_a_job_that_vanished(engine, settings, make, tmp_path):
    """What it had chosen and is gone when its turn comes is one line of information at most."""
    bob, ada = make(BOB), make(ADA)
    late = submit(settings, engine, [str(tmp_path / f"{ADA}.txt")], user=ADA)
    store = open_store(settings.store)
    with transaction(engine) as session:
        [chosen] = splittable_jobs(session)
        assert chosen.id == late.job_id
        cancel_job(session, ada.job_ids[0])
    with engine.connect() as connection, capture_logs() as logs:
        leader = Leader(connection, settings)
        stopped = find_stopped(leader)
        assert (ada.job_ids[0], True) in stopped
        close(settings, engine, ada).run()
        assert not Splitter(leader, store).step(chosen)
        for job_id, cancelled in stopped:
            drain_job(leader, job_id, cancelled=cancelled)
        assert queue_ready(engine) == []
    assert [(line["event"], line["log_level"]) for line in logs] == [("source_not_wanted", "info")]
    assert read_job(engine, bob.job_ids[0])["status"] == "running"


def test_a_chunk_that_another_process_has_locked_is_passed_over(engine, settings, make):
    """The batch takes the others, and does not wait for a lock."""
    ada = make(ADA)
    job_id = ada.job_ids[0]
    with transaction(engine) as holder:
        holder.execute(text("SELECT FROM job_chunks ORDER BY id LIMIT 1 FOR UPDATE"))
        with transaction(engine) as session:
            assert closing.delete_chunks(session, job_id, False, 10) == 2
            assert closing.chunks_left(session, job_id) == 1
    with transaction(engine) as session:
        assert closing.delete_chunks(session, job_id, False, 10) == 1


def test_only_a_living_worker_of_ours_is_waited_for(engine):
    """A chunk whose lease is over goes at once, one that another service runs, too, and any once patience ends."""
    job = new_job(engine, [1] * 4)
    lost, foreign, living, _waiting = queue_ready(engine)
    for message in (lost, foreign, living):
        assert start(engine, message) is not None
    lease = "UPDATE job_chunks SET lease_until = {} WHERE id = :id"
    change(engine, lease.format("now()"), id=lost.chunk_id)
    change(engine, lease.format("'infinity'"), id=foreign.chunk_id)
    with transaction(engine) as session:
        assert closing.delete_chunks(session, job.id, True, 10) == 3
    assert query(engine, "SELECT id FROM job_chunks") == [(living.chunk_id,)]
    with transaction(engine) as session:
        assert closing.delete_chunks(session, job.id, True, 10) == 0
        assert closing.delete_chunks(session, job.id, False, 10) == 1


def test_a_lost_worker_is_not_waited_for_longer_than_its_lease(engine, settings, make, monkeypatch):
    """And who renews a lease for ever is waited for a minute: the fence keeps it from writing."""
    ada = make(ADA)
    change(engine, "UPDATE job_chunks SET lease_until = now() + interval '1 day' WHERE status = 'processing'")
    monkeypatch.setattr("scheduler.closing_jobs.WORKER_SECONDS_MAX", 0.5)
    said: list[str] = []
    close(settings, engine, ada, say=said.append).run()
    assert said == [f"Waiting until workers have let go of 1 chunk of job {ada.job_ids[0]}."]
    assert not any(rows_of(engine, ada).values())
