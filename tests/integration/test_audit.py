"""The audit: silent while the books are right, and one line for each thing that somebody bent."""

import json
import threading
from typing import Any

import pytest
from sqlalchemy import Engine, text

from models import audit
from models.audit import Difference, differences
from models.database import transaction
from models.lifecycle import checkpoint_chunk, settle_chunk
from models.outcomes import Reason
from models.refunds import refund_job
from scheduler.cli import main
from scheduler.commands.audit import auditing
from tests.support.crawling import (
    LEASE_SECONDS,
    NewJob,
    accepted,
    change,
    new_job,
    queue_ready,
    refused,
    start,
    start_next,
)


@pytest.fixture
def job(engine: Engine) -> NewJob:
    """A job of three chunks: one ended with two images of five, one under way, one queued; and a refund."""
    job = new_job(engine, [5, 5, 5], unit_price=2)
    first, second = start_next(engine), start_next(engine)
    with transaction(engine) as session:
        settle_chunk(session, first.fence, [accepted(0), accepted(1), *map(refused, (2, 3, 4))])
    with transaction(engine) as session:
        checkpoint_chunk(session, second.fence, [accepted(5), refused(6, Reason.DNS)], LEASE_SECONDS)
        refund_job(session, job.id, 1, "Blurred")
    assert len(queue_ready(engine)) == 1
    return job


def audited(engine: Engine, user_id: Any = None) -> list[Difference]:
    """What the audit finds."""
    with auditing(engine) as session:
        return list(differences(session, user_id))


def bend(engine: Engine, statement: str) -> None:
    """Change what no program may change."""
    with transaction(engine) as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text(statement))


SETTLED = "FROM job_chunks c WHERE c.id = t.chunk_id AND c.status = 'completed'"
BENT = {
    "UPDATE credit_accounts SET current_balance = current_balance + 3": {("balance of an account", None, 3)},
    "UPDATE credit_accounts SET monthly_usage = monthly_usage - 4": {("usage of the month", None, -4)},
    f"UPDATE credit_transactions t SET amount = amount - 2 {SETTLED}": {
        ("balance of an account", None, 2),
        ("usage of the month", None, -2),
        ("charge of a chunk", 1, 2),
    },
    f"UPDATE credit_transactions t SET job_id = 77, chunk_id = 77 {SETTLED}": {
        ("charge of a chunk", 1, -4),
        ("refunds of a job", None, 1),
    },
    "UPDATE credit_transactions SET chunk_id = 77 WHERE status = 'pending' AND chunk_id = 2": {
        ("hold without a live chunk", 77, 10),
        ("open holds of a chunk", 2, -1),
    },
    "UPDATE job_chunks SET status = 'completed', failed = 4, lease_until = NULL, worker = NULL WHERE id = 2": {
        ("hold without a live chunk", 2, 10),
        ("charge of a chunk", 2, -2),
        ("open holds of a chunk", 2, 1),
        ("failures of a chunk", 2, 3),
        ("processing chunks of a job", None, 1),
        ("completed chunks of a job", None, -1),
    },
    "DELETE FROM images WHERE position = 1": {
        ("images of a chunk", 1, 1),
        ("images of a job", None, 1),
        ("stored bytes of a job", None, 100),
    },
    "UPDATE job_chunks SET accepted = 3, failed = 2 WHERE id = 1": {
        ("charge of a chunk", 1, -2),
        ("images of a chunk", 1, 1),
        ("failures of a chunk", 1, -1),
        ("images of a job, by its chunks", None, -1),
    },
    "UPDATE crawl_jobs SET total_chunks = 4": {("chunks of a job", None, 1)},
    "UPDATE crawl_jobs SET failed_chunks = 1": {("failed chunks of a job", None, 1)},
    "UPDATE crawl_jobs SET stored_bytes = 0": {("stored bytes of a job", None, -300)},
    """UPDATE crawl_jobs SET failures = '{"dns": 2, "http_status": 3}'""": {
        ("failures of a job, dns", None, 1),
        ("failures of a job", None, -1),
    },
    "UPDATE failures SET position = 1, position_end = 1 WHERE position = 2": {
        ("candidates with two outcomes", None, 1),
    },
    "UPDATE failures SET position_end = 4 WHERE position = 2": {
        ("failures of a chunk", 1, -2),
        ("failures of a job, http_status", None, -2),
        ("candidates with two outcomes", None, 2),
    },
    """UPDATE crawl_jobs SET status = 'completed', completed_at = now(), total_images = 15""": {
        ("outcomes of an ended job", None, -8),
    },
}


def test_right_books_have_no_difference(engine, job):
    """Whatever is under way, the audit is silent; so it is for one user."""
    assert audited(engine) == []
    assert audited(engine, job.user_id) == []


@pytest.mark.parametrize("statement", BENT)
def test_whatever_is_bent_is_found(engine, job, statement):
    """Each rule names its account, job and chunk, with what was expected and what was found; nothing else does."""
    bend(engine, statement)
    found = audited(engine)
    assert {(each.rule, each.chunk, each.found - each.expected) for each in found} == BENT[statement]
    assert all(each.user.endswith("@example.invalid") for each in found)
    assert {each.job for each in found} <= {job.id, 77, None}
    assert audited(engine) == found, "it repairs nothing"


def test_only_one_users_books(engine, job):
    """--user looks at that user's account and jobs alone."""
    other = new_job(engine, [5])
    bend(engine, "UPDATE credit_accounts SET current_balance = current_balance + 1")
    bend(engine, "UPDATE crawl_jobs SET total_chunks = total_chunks + 1")
    assert len(audited(engine)) == 4
    assert [each.job for each in audited(engine, other.user_id)] == [None, other.id]


def test_every_page_is_looked_at(engine, job, monkeypatch):
    """However small a page is, each account and job is audited once."""
    for name in ("ACCOUNTS_PAGE", "JOBS_PAGE", "CHUNKS_PAGE"):
        monkeypatch.setattr(audit, name, 1)
    for _ in range(4):
        new_job(engine, [5, 5, 5])
    bend(engine, "UPDATE credit_accounts SET current_balance = current_balance + 1")
    bend(engine, "UPDATE crawl_jobs SET total_chunks = total_chunks + 1")
    found = audited(engine)
    assert len(found) == 10
    assert [each.job for each in found if each.job] == sorted({each.job for each in found if each.job})


def test_deleted_jobs_and_closing_accounts_are_no_difference(engine, job):
    """A job that is gone leaves its charges; a job or an account that is being deleted explains nothing."""
    with transaction(engine) as session:
        session.execute(text("UPDATE crawl_jobs SET cancelled_at = now()"))
    other = new_job(engine, [5])
    with transaction(engine) as session:
        chunk = start(engine, queue_ready(engine)[0])
        assert chunk is not None
        settle_chunk(session, chunk.fence, [accepted(each.position) for each in chunk.candidates])
    change(engine, "DELETE FROM crawl_jobs WHERE id = :id", id=other.id)
    assert audited(engine) == []
    bend(engine, "DELETE FROM images")
    assert audited(engine) != []
    bend(engine, "UPDATE crawl_jobs SET deleting_at = now()")
    assert audited(engine) == []
    bend(engine, "DELETE FROM credit_transactions")
    assert audited(engine) != []
    change(engine, "UPDATE credit_accounts SET closing_at = now()")
    assert audited(engine) == []


def test_a_job_of_another_service_counts_as_it_likes(engine, job):
    """Jobs without a source are left alone."""
    bend(engine, "UPDATE crawl_jobs SET source_kind = NULL, total_chunks = 99")
    new_job(engine)
    bend(engine, "UPDATE credit_accounts SET monthly_usage = 7 WHERE usage_period = ''")
    assert audited(engine) == []


def test_nothing_is_held_open_between_pages(engine, job):
    """While somebody reads the differences slowly, no snapshot and no transaction of the audit is open."""
    bend(engine, "UPDATE crawl_jobs SET total_chunks = 4")
    with auditing(engine) as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        found = differences(session)
        next(found)
        with engine.connect() as connection:
            held = text("SELECT state, backend_xmin FROM pg_stat_activity WHERE pid = :pid")
            assert tuple(connection.execute(held, {"pid": pid}).one()) == ("idle", None)


def test_it_is_right_while_others_write(engine):
    """Chunks are settled all the time, and no audit of that time finds a difference."""
    new_job(engine, [2] * 60, balance=1000)
    stop = threading.Event()

    def work() -> None:
        try:
            while messages := queue_ready(engine, 2):
                for message in messages:
                    chunk = start(engine, message)
                    assert chunk is not None
                    with transaction(engine) as session:
                        outcomes = [accepted(each.position) for each in chunk.candidates]
                        settle_chunk(session, chunk.fence, outcomes)
        finally:
            stop.set()

    worker = threading.Thread(target=work)
    worker.start()
    audits = 0
    while not stop.is_set():
        assert audited(engine) == []
        audits += 1
    worker.join()
    assert audits > 3


def test_the_command(engine, database_url, services, job, monkeypatch, capsys, tmp_path):
    """Exit code 0 and a sentence, or 1 and a line for each difference; JSON as an array."""
    monkeypatch.setenv("PIXTRAWL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIXTRAWL_DATABASE_URL", database_url)
    monkeypatch.setenv("PIXTRAWL_REDIS_URL", services.redis_url)
    assert main(["credits", "audit"]) == 0
    assert capsys.readouterr().out == "No difference: the books are right\n"
    assert main(["credits", "audit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    bend(engine, "DELETE FROM images WHERE position = 1")
    assert main(["credits", "audit"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 differences"
    assert lines[0].endswith(f", job {job.id}, chunk 1: images of a chunk: expected 1, found 2")
    assert main(["credits", "audit", "--json"]) == 1
    [first, *_] = json.loads(capsys.readouterr().out)
    assert first.keys() == {"rule", "user", "job", "chunk", "expected", "found"}
    assert main(["credits", "audit", "--user", "nobody@example.invalid"]) == 2
