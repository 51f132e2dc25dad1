"""Whoever deletes chunks, or what they hang on: what was held for them is settled, and nobody else notices."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from models import CrawlJob, Profile, Project
from models.credits import settle
from models.database import make_engine, transaction, transient
from models.lifecycle import StartedChunk, checkpoint_chunk, hand_back_chunk, settle_chunk
from models.queueing import claim_chunks, lock_jobs
from models.settings import read_settings
from scheduler.leader import Leader
from scheduler.loop import Stages
from tests.support.crawling import (
    LEASE_SECONDS,
    NewJob,
    accepted,
    balance_of,
    change,
    check_money,
    new_job,
    query,
    queue_ready,
    refused,
    start,
    start_next,
)
from tests.support.processes import until
from worker.writing import LostChunkError, commit

ORPHANED = """SELECT t.id FROM credit_transactions t LEFT JOIN job_chunks c ON c.id = t.chunk_id
    WHERE t.status = 'pending' AND t.type = 'usage' AND c.id IS NULL"""


def ledger(engine: Engine, job: NewJob) -> dict[str, Any]:
    """An account and its transactions in the order of their chunks, without ids and times."""
    parameters = {"id": job.account_id}
    account = "SELECT current_balance, monthly_usage, usage_period FROM credit_accounts WHERE id = :id"
    rows = """SELECT type, status, amount, balance_after, held, period, settled_at IS NOT NULL
        FROM credit_transactions WHERE account_id = :id ORDER BY chunk_id, created_at"""
    return {"account": query(engine, account, **parameters), "rows": query(engine, rows, **parameters)}


# --------------------------------------------------------------------------------------- the same as settling


def untouched(_: Engine, __: StartedChunk) -> None:
    """Nothing was accepted yet."""


def some_accepted(engine: Engine, chunk: StartedChunk) -> None:
    """A checkpoint was made."""
    outcomes = [accepted(candidate.position) for candidate in chunk.candidates[:3]]
    with transaction(engine) as session:
        checkpoint_chunk(session, chunk.fence, [*outcomes, refused(9)], LEASE_SECONDS)


def all_accepted(engine: Engine, chunk: StartedChunk) -> None:
    """All there is was accepted, and the worker is about to settle."""
    outcomes = [accepted(candidate.position) for candidate in chunk.candidates]
    with transaction(engine) as session:
        checkpoint_chunk(session, chunk.fence, outcomes, LEASE_SECONDS)


def charged_before(engine: Engine, chunk: StartedChunk) -> None:
    """Handed back, paused (the hold was settled at three images), resumed, queued and begun again."""
    outcomes = [accepted(candidate.position) for candidate in chunk.candidates[:3]]
    with transaction(engine) as session:
        hand_back_chunk(session, chunk.fence, outcomes)
        assert settle(session, chunk.fence.chunk_id, 3) is not None
    again = start_next(engine, "again")
    with transaction(engine) as session:
        checkpoint_chunk(session, again.fence, [accepted(5), accepted(6)], LEASE_SECONDS)


def month_turned(engine: Engine, chunk: StartedChunk) -> None:
    """The hold is of a month that the account has left."""
    some_accepted(engine, chunk)
    with transaction(engine) as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("UPDATE credit_transactions SET period = '2001-01' WHERE period IS NOT NULL"))
        session.execute(text("UPDATE credit_accounts SET monthly_usage = 0"))


def month_reset(engine: Engine, chunk: StartedChunk) -> None:
    """Another service lets the month begin anew under the hold."""
    some_accepted(engine, chunk)
    change(engine, "UPDATE credit_accounts SET monthly_usage = 0")


STATES = (untouched, some_accepted, all_accepted, charged_before, month_turned, month_reset)


@pytest.mark.parametrize("state", STATES)
def test_deleting_a_chunk_settles_as_its_end_would(
    engine: Engine, state: Callable[[Engine, StartedChunk], None]
) -> None:
    """The account and every line of the ledger are those that ``settle`` leaves, but for their times."""
    found = []
    for end in (settle_by_hand, delete_chunk):
        job = new_job(engine, [10], balance=100, unit_price=3, owner=None)
        state(engine, start_next(engine))
        end(engine, job)
        found.append(ledger(engine, job))
        assert query(engine, ORPHANED) == []
        change(engine, "DELETE FROM profiles WHERE id = :id", id=job.user_id)
    settled, deleted = found
    assert deleted == settled


def settle_by_hand(engine: Engine, job: NewJob) -> None:
    """The statement of the program."""
    [(images,)] = query(engine, "SELECT accepted FROM job_chunks WHERE job_id = :id", id=job.id)
    with transaction(engine) as session:
        settle(session, job.chunk_ids[0], images)


def delete_chunk(engine: Engine, job: NewJob) -> None:
    """The trigger."""
    change(engine, "DELETE FROM job_chunks WHERE job_id = :id", id=job.id)


def by_mapping(kind: type[Project] | type[CrawlJob]) -> Callable[[Engine, NewJob], None]:
    """As a service deletes that uses the models."""

    def delete(engine: Engine, job: NewJob) -> None:
        with Session(engine) as session:
            found = session.get_one(CrawlJob, job.id)
            session.delete(found if kind is CrawlJob else found.project)
            session.commit()

    return delete


def by_statement(statement: str) -> Callable[[Engine, NewJob], None]:
    """As a person at psql deletes."""
    return lambda engine, job: change(engine, statement, id=job.id)


WAYS = {
    "chunks": by_statement("DELETE FROM job_chunks WHERE job_id = :id"),
    "job": by_statement("DELETE FROM crawl_jobs WHERE id = :id"),
    "project": by_statement(
        "DELETE FROM projects WHERE id = (SELECT project_id FROM crawl_jobs WHERE id = :id)"
    ),
    "truncated": by_statement("TRUNCATE crawl_jobs CASCADE"),
    "mapped job": by_mapping(CrawlJob),
    "mapped project": by_mapping(Project),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_deleting_returns_what_was_held(engine: Engine, way: str) -> None:
    """Of chunks that were settled, processing, queued, and never dispatched; each line has its own balance."""
    job = new_job(engine, [10, 10, 10, 10], balance=30)
    settled, begun = (start(engine, message) for message in queue_ready(engine)[:2])
    assert settled is not None
    assert begun is not None
    with transaction(engine) as session:
        settle_chunk(session, settled.fence, [accepted(0), *map(refused, range(1, 10))])
        checkpoint_chunk(session, begun.fence, [accepted(10), accepted(11)], LEASE_SECONDS)
    assert balance_of(engine, job) == 9
    WAYS[way](engine, job)
    assert balance_of(engine, job) == 27
    assert query(engine, "SELECT count(*) FROM job_chunks") == [(0,)]
    lines = """SELECT status, amount, balance_after FROM credit_transactions WHERE type = 'usage'
        ORDER BY chunk_id"""
    assert query(engine, lines) == [("completed", -1, 9), ("completed", -2, 17), ("cancelled", -10, 27)]
    check_money(engine)


def test_one_statement_may_reach_several_accounts(engine: Engine) -> None:
    """Each gets its own back; what is not deleted stays held."""
    jobs = [new_job(engine, [10, 10], balance=100) for _ in range(3)]
    assert len(queue_ready(engine)) == 6
    ids = [jobs[0].chunk_ids[0], *jobs[1].chunk_ids]
    change(engine, "DELETE FROM job_chunks WHERE id = ANY(:ids)", ids=ids)
    assert [balance_of(engine, job) for job in jobs] == [90, 100, 80]
    check_money(engine)


def test_a_profile_goes_with_its_open_holds(engine: Engine) -> None:
    """The cascade meets account, ledger and chunks in whatever order; nobody else's account moves."""
    going, staying = (new_job(engine, [10], balance=100) for _ in range(2))
    queue_ready(engine)
    change(engine, "DELETE FROM profiles WHERE id = :id", id=going.user_id)
    assert query(engine, "SELECT count(*) FROM credit_transactions WHERE status = 'pending'") == [(1,)]
    queue_ready(engine)
    with Session(engine) as session:
        session.delete(session.get_one(Profile, staying.user_id))
        session.commit()
    assert query(engine, "SELECT count(*) FROM credit_transactions") == [(0,)]


def test_a_hold_that_is_too_small_does_not_keep_a_chunk(engine: Engine) -> None:
    """Another service may have written anything into ``accepted``: at most what was held is charged."""
    job = new_job(engine, [10], balance=100, unit_price=2)
    change(engine, "UPDATE job_chunks SET size = 50, accepted = 40")
    [message] = queue_ready(engine)
    change(engine, "UPDATE job_chunks SET accepted = 50")
    change(engine, "DELETE FROM job_chunks WHERE id = :id", id=message.chunk_id)
    assert balance_of(engine, job) == 80
    assert query(engine, ORPHANED) == []


def test_deleting_without_holds_probes_one_index(engine: Engine) -> None:
    """The ledger of a large account is not read for chunks that hold nothing."""
    job = new_job(engine, [1] * 200, balance=100)
    change(
        engine,
        """INSERT INTO credit_transactions (account_id, user_id, type, amount, balance_after, status, chunk_id,
            settled_at)
        SELECT :account, :user, 'usage', -1, 0, 'completed', n, now() FROM generate_series(1, 5000) n""",
        account=job.account_id,
        user=job.user_id,
    )
    change(engine, "ANALYZE credit_transactions")
    reads = "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'credit_transactions'"
    with transaction(engine) as session:
        session.execute(text("DELETE FROM crawl_jobs"))
        by_scan, by_index = session.execute(text(reads)).one()
    assert by_scan == 0
    assert by_index < 100


# ------------------------------------------------------------------------------------------ while others work

JOBS, CHUNKS, SIZE = 8, 6, 5
WAITING = """SELECT count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()"""


def crawl(engine: Engine, chunks: list[StartedChunk], counts: list[str]) -> None:
    """What a worker commits for each of its chunks, in two steps, with its own retries."""
    for chunk in chunks:
        first, *others = [accepted(candidate.position) for candidate in chunk.candidates]
        fence = chunk.fence
        try:
            checkpoint = partial(checkpoint_chunk, fence=fence, outcomes=[first], lease_seconds=LEASE_SECONDS)
            commit(engine, fence, checkpoint)
            later = replace(fence, checkpoint=fence.checkpoint + 1)
            commit(engine, later, partial(settle_chunk, fence=later, outcomes=others))
            counts.append("settled")
        except LostChunkError as error:
            counts.append(str(error))


def delete_jobs(engine: Engine, jobs: list[NewJob], failures: list[str]) -> None:
    """What another service does, which has to try again after a deadlock as anybody has to."""
    for job in jobs:
        while True:
            try:
                change(engine, "DELETE FROM crawl_jobs WHERE id = :id", id=job.id)
                break
            except DBAPIError as error:
                if not transient(error):
                    raise
                failures.append(str(error.orig))


def test_settles_and_deletes_at_once_lose_nothing(database_url: str, engine: Engine) -> None:
    """Workers commit outcomes of jobs that are deleted under them: each chunk is settled once, by one of both."""
    first = new_job(engine, [SIZE] * CHUNKS, balance=100_000)
    jobs = [first, *(new_job(engine, [SIZE] * CHUNKS, owner=first) for _ in range(JOBS - 1))]
    chunks = []
    while messages := queue_ready(engine):
        chunks += [chunk for message in messages if (chunk := start(engine, message)) is not None]
    assert len(chunks) == JOBS * CHUNKS
    own = make_engine(database_url, pool_size=8, deadlock_timeout="50ms")
    counts: list[str] = []
    failures: list[str] = []
    threads = [
        threading.Thread(target=crawl, args=(own, chunks[number::4], counts), name=f"worker {number}")
        for number in range(4)
    ]
    threads.append(threading.Thread(target=delete_jobs, args=(own, jobs[1::2], failures), name="deleter"))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    own.dispose()
    assert len(counts) == len(chunks)
    assert set(counts) <= {"settled", "it was deleted"}
    check_money(engine)
    assert query(engine, "SELECT count(*) FROM credit_transactions WHERE status = 'pending'") == [(0,)]
    [(left,)] = query(engine, "SELECT count(*) FROM job_chunks WHERE status = 'completed'")
    assert left == JOBS // 2 * CHUNKS
    [(images,)] = query(engine, "SELECT count(*) FROM images")
    [(charged,)] = query(
        engine, "SELECT -sum(amount) FROM credit_transactions WHERE status = 'completed' AND type = 'usage'"
    )
    assert charged >= images == left * SIZE


def test_a_stage_that_meets_a_deletion_is_run_again_at_once(database_url: str, engine: Engine) -> None:
    """Dispatch locks a chunk and then its job, a deletion the other way round: the scheduler says so in one line,
    and its next round works.
    """
    job = new_job(engine, [10], balance=100)
    own = make_engine(database_url, deadlock_timeout="30s")
    settings = read_settings(database_url=database_url, redis_url="redis://nowhere")
    deleter = threading.Thread(target=delete_jobs, args=(own, [job], []))

    def dispatch(leader: Leader) -> str:
        with leader.transaction() as session:
            [chunk] = claim_chunks(session, 1) or [None]
            if chunk is None:
                return "nothing to do"
            deleter.start()
            until(lambda: query(engine, WAITING) == [(1,)], "a deletion that waits for the chunk")
            lock_jobs(session, [chunk])
            return "dispatched"

    with engine.connect() as connection, capture_logs() as logs:
        leader = Leader(connection, settings)
        stages = Stages(leader)
        assert stages.run("dispatch", partial(dispatch, leader), "failed") == "failed"
        deleter.join(60)
        assert stages.run("dispatch", partial(dispatch, leader), "failed") == "nothing to do"
    own.dispose()
    assert [(line["event"], line["log_level"]) for line in logs] == [("stage_deadlocked", "warning")]
    assert query(engine, "SELECT count(*) FROM crawl_jobs") == [(0,)]


def test_a_worker_that_meets_a_deletion_finds_its_chunk_gone(engine: Engine, database_url: str) -> None:
    """A job is deleted while a checkpoint stands between the chunk's lock and the job's: the server finds the
    deadlock, the worker's retry learns that the chunk is gone, and nothing is lost.
    """
    job = new_job(engine, [10, 10], balance=100)
    chunk = start_next(engine)
    own = make_engine(database_url, pool_size=4, deadlock_timeout="50ms")
    deleter = threading.Thread(target=delete_jobs, args=(own, [job], failures := []))
    attempts = 0

    def checkpoint(session: Session) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            session.execute(
                text("SELECT FROM job_chunks WHERE id = :id FOR NO KEY UPDATE"), {"id": chunk.fence.chunk_id}
            )
            deleter.start()
            until(lambda: query(engine, WAITING) == [(1,)], "a deletion that waits for the chunk")
        return checkpoint_chunk(session, chunk.fence, [accepted(0)], LEASE_SECONDS)

    lost = ""
    try:
        commit(own, chunk.fence, checkpoint)
    except LostChunkError as error:
        lost = str(error)
    deleter.join(60)
    # Either of the two was the server's victim.
    assert (lost, attempts > 1) == ("it was deleted", True) or failures
    own.dispose()
    assert query(engine, "SELECT count(*) FROM crawl_jobs") == [(0,)]
    check_money(engine)
    assert balance_of(engine, job) in {100, 99}
