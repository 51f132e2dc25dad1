"""The scheduler's rounds on real PostgreSQL, Valkey and files; leadership with real processes."""

import datetime
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from models.credits import grant
from models.database import transaction
from models.job_lifecycle import (
    JobRequest,
    block_job,
    cancel_job,
    close_job,
    create_job,
    pause_job,
    refresh_task_ids,
    unblock_jobs,
)
from models.jobs import BlockedReason, SourceKind, SourceState
from models.lifecycle import checkpoint_chunk, hand_back_chunk, renew_lease, settle_chunk
from models.outcomes import Outcome
from models.prioritizing import change_priority
from models.queueing import Message
from models.reopening import reopen_cut_off_jobs
from models.retrying import ALL_FAILURES
from models.settings import Settings, read_settings
from models.splitting import NewChunk, abandon_source, advance_source, satisfy_source, splittable_jobs
from scheduler import dispatch as dispatching
from scheduler.dispatch import bring_along, dispatch
from scheduler.leader import IDLE_SECONDS_MAX, Leader, leadership
from scheduler.loop import (
    GAP_SECONDS_MAX,
    RENEWAL_SECONDS,
    Patience,
    Stages,
    close_jobs,
    drain_stopped,
    judge_leases,
    reopen_cut_off,
)
from scheduler.rescue import find_lost_messages, find_stopped, rescue_expired, server_time
from scheduler.retry import retry
from scheduler.split import Splitter
from tests.support.crawling import (
    NewJob,
    accepted,
    balance_of,
    candidates,
    change,
    check_books,
    expire_lease,
    new_job,
    query,
    queue_ready,
    read_chunk,
    read_job,
    refused,
    settle_run,
    start,
    start_next,
    wait_for_blocked,
)
from worker.store import Store, open_store


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a scheduler that needs no Redis."""
    url = database_url.replace("+psycopg2", "")
    store = (tmp_path / "store").as_uri()
    return read_settings(database_url=url, redis_url="redis://127.0.0.1:1/0", store_url=store)


@pytest.fixture
def leader(settings: Settings) -> Iterator[Leader]:
    """The leader, in this process."""
    with leadership(settings, threading.Event()) as leader:
        assert leader is not None
        yield leader


@pytest.fixture
def store(settings: Settings) -> Store:
    """The store of the settings."""
    return open_store(settings.store)


def test_slow_work_does_not_cost_the_session(settings, monkeypatch):
    """A leader that waits for a store longer than its session may be idle is still the leader."""
    monkeypatch.setattr("scheduler.leader.IDLE_SECONDS_MAX", 1)
    monkeypatch.setattr("scheduler.leader.PING_SECONDS", 0.2)
    with leadership(settings, threading.Event()) as leader:
        assert leader is not None
        assert leader.meanwhile(threading.Event().wait, 2.5) is False
        with leader.transaction() as session:
            assert session.execute(text("SELECT 7")).scalar_one() == 7


def set_slots(engine: Engine, slots: int, *, seconds_ago: int = 0) -> None:
    """One worker with so many slots, last seen so long ago."""
    change(
        engine,
        """INSERT INTO workers (name, slots, version, seen_at)
        VALUES ('w', :slots, '0', now() - make_interval(secs => :ago))
        ON CONFLICT (name) DO UPDATE SET slots = :slots, seen_at = excluded.seen_at""",
        slots=slots,
        ago=seconds_ago,
    )


def finish(engine: Engine, message: Message, make: Callable[[int], Outcome] = accepted) -> None:
    """Let a worker give every candidate of a chunk the same kind of outcome."""
    chunk = start(engine, message)
    assert chunk is not None
    assert settle_run(engine, chunk, [make(candidate.position) for candidate in chunk.candidates]) is not None


def ranges(engine: Engine, job_id: int) -> list[tuple[Any, ...]]:
    """(index, start, end, size) of a job's chunks, by position."""
    statement = """SELECT chunk_index, CAST(image_range->>'start' AS int), CAST(image_range->>'end' AS int), size
        FROM job_chunks WHERE job_id = :job_id ORDER BY 2"""
    return query(engine, statement, job_id=job_id)


def told(engine: Engine, category: str) -> list[str]:
    """Titles of the notifications of a category."""
    statement = "SELECT title FROM notifications WHERE category = :category ORDER BY id"
    return [title for (title,) in query(engine, statement, category=category)]


# ------------------------------------------------------------------------------------------------ dispatch


def test_the_window_is_two_chunks_for_each_live_slot(engine, leader):
    """Nothing is queued without a live worker, and never more than twice the slots is in flight."""
    new_job(engine, [5] * 9)
    assert dispatch(leader) == []
    set_slots(engine, 2, seconds_ago=60)
    assert dispatch(leader) == []
    set_slots(engine, 2)
    first = dispatch(leader)
    assert len(first) == 4
    assert dispatch(leader) == []
    assert start(engine, first[0]) is not None
    assert dispatch(leader) == []
    finish(engine, first[1])
    assert len(dispatch(leader)) == 1
    check_books(engine)


def test_the_last_credits_are_spent(engine, leader):
    """A hold takes what the balance has, a worker gets no more candidates than that, and the chunk goes on."""
    set_slots(engine, 1)
    job = new_job(engine, [10, 5], balance=47, unit_price=3)
    messages = dispatch(leader)
    assert [message.chunk_id for message in messages] == job.chunk_ids
    assert balance_of(engine, job) == 2

    poor = new_job(engine, [10], balance=23, unit_price=3)
    for message in messages:
        finish(engine, message)
    [message] = dispatch(leader)
    assert balance_of(engine, poor) == 2
    first = start(engine, message)
    assert first is not None
    assert (first.candidates, first.unpaid) == (candidates(0, 7), 3)
    settle_run(engine, first, [accepted(place) if place % 2 else refused(place) for place in range(7)])
    chunk = read_chunk(engine, message.chunk_id)
    assert (chunk["status"], chunk["accepted"], chunk["failed"], chunk["retry_count"]) == ("pending", 3, 4, 0)
    assert (read_job(engine, poor.id)["active_chunks"], balance_of(engine, poor)) == (0, 23 - 9)
    check_books(engine)

    second = start_next(engine)
    assert (second.candidates, second.unpaid) == (candidates(7, 3), 0)
    settle_run(engine, second, [accepted(place) for place in range(7, 10)])
    assert (read_chunk(engine, message.chunk_id)["status"], balance_of(engine, poor)) == (
        "completed",
        23 - 18,
    )
    check_books(engine)


def test_what_a_hold_still_covers_bounds_the_next_attempt(engine, leader):
    """A worker that leaves or is lost leaves its hold; one that is used up is settled, and not run for ever."""
    set_slots(engine, 1)
    job = new_job(engine, [6], balance=3)
    chunk = start_next(engine)
    assert (chunk.candidates, chunk.unpaid) == (candidates(0, 3), 3)
    with transaction(engine) as session:
        hand_back_chunk(session, chunk.fence, [accepted(0), refused(1)])
    chunk = start_next(engine)
    assert (chunk.candidates, chunk.unpaid) == (candidates(2, 2), 2)
    with transaction(engine) as session:
        checkpoint_chunk(session, chunk.fence, [accepted(2), accepted(3)], 30)
    expire_lease(engine, chunk.fence.chunk_id)
    rescue_expired(leader)
    chunk = start_next(engine)
    assert (chunk.candidates, chunk.unpaid, chunk.retry_count) == ([], 2, 1)
    settle_run(engine, chunk, [])
    check_books(engine)
    assert read_chunk(engine, chunk.fence.chunk_id)["retry_count"] == 1
    assert dispatch(leader) == []
    assert read_job(engine, job.id)["blocked_reason"] == "out_of_credits"
    with transaction(engine) as session:
        grant(session, job.user_id, 1, description="More")
        assert unblock_jobs(session) == [job.id]
    chunk = start_next(engine)
    assert (chunk.candidates, chunk.unpaid) == (candidates(4, 1), 1)
    check_books(engine)


def test_a_job_without_credits_is_blocked_once_and_goes_on_after_a_grant(engine, leader):
    """Its owner is told once, others are not held up, and credits that settlements give back are used."""
    set_slots(engine, 8)
    poor, rich = new_job(engine, [4, 4, 4], balance=4, priority=9), new_job(engine, [5])
    messages = dispatch(leader)
    assert [message.job_id for message in messages] == [poor.id, rich.id]
    assert read_job(engine, poor.id)["blocked_reason"] == "out_of_credits"
    assert told(engine, "billing") == ["Out of credits"]
    with leader.transaction() as session:
        assert unblock_jobs(session) == []

    finish(engine, messages[0], lambda place: accepted(place) if place < 3 else refused(place))
    with leader.transaction() as session:
        assert unblock_jobs(session) == [poor.id]
    [message] = dispatch(leader)
    finish(engine, message)
    chunk = read_chunk(engine, message.chunk_id)
    assert (chunk["status"], chunk["accepted"]) == ("pending", 1)
    assert dispatch(leader) == []
    assert read_job(engine, poor.id)["blocked_reason"] == "out_of_credits"
    assert told(engine, "billing") == ["Out of credits"]

    with transaction(engine) as session:
        grant(session, poor.user_id, 3, description="More")
    with leader.transaction() as session:
        assert unblock_jobs(session) == [poor.id]
    [message] = dispatch(leader)
    finish(engine, message)
    assert read_chunk(engine, message.chunk_id)["status"] == "completed"
    assert dispatch(leader) == []
    assert told(engine, "billing") == ["Out of credits"] * 2
    check_books(engine)


def test_a_job_is_blocked_for_its_first_reason_until_it_goes_on(engine):
    """One that is blocked already is not blocked again, and one that has ended does not go on."""
    job = new_job(engine, [4])
    with transaction(engine) as session:
        assert block_job(session, job.id, BlockedReason.MONTHLY_LIMIT)
        assert not block_job(session, job.id, BlockedReason.OUT_OF_CREDITS)
    assert read_job(engine, job.id)["blocked_reason"] == "monthly_limit"
    assert told(engine, "billing") == ["Monthly limit reached"]
    change(engine, "UPDATE crawl_jobs SET status = 'failed', completed_at = now()")
    with transaction(engine) as session:
        assert unblock_jobs(session) == []


def test_an_owner_is_told_again_of_another_job_and_in_another_month(engine):
    """Of one job once a month, however often it is blocked between two top-ups."""
    job = new_job(engine, [4], balance=0)
    other = new_job(engine, [4], owner=job)
    figures = []
    for job_id in (job.id, other.id, job.id):
        with transaction(engine) as session:
            assert block_job(session, job_id, BlockedReason.OUT_OF_CREDITS)
        figures.append(len(told(engine, "billing")))
        change(engine, "UPDATE crawl_jobs SET blocked_reason = NULL")
    assert figures == [1, 2, 2]
    past = "date_trunc('month', now() AT TIME ZONE 'utc') AT TIME ZONE 'utc' - interval '1 us'"
    change(engine, f"UPDATE notifications SET created_at = {past}")
    with transaction(engine) as session:
        assert block_job(session, job.id, BlockedReason.OUT_OF_CREDITS)
    assert len(told(engine, "billing")) == 3


def test_a_blocked_job_does_not_wait_for_its_own_credits(engine, leader):
    """A chunk that came back to a blocked job gives up its hold, which then pays for what is next; what is queued
    keeps its own.
    """
    set_slots(engine, 2)
    job = new_job(engine, [3, 3, 3], balance=6)
    handed, queued = dispatch(leader)
    chunk = start(engine, handed)
    assert chunk is not None
    with transaction(engine) as session:
        hand_back_chunk(session, chunk.fence, [accepted(0)])
    assert read_job(engine, job.id)["blocked_reason"] == "out_of_credits"
    assert find_stopped(leader) == [(job.id, False)]
    drain_stopped(Stages(leader))
    assert find_stopped(leader) == []
    assert balance_of(engine, job) == 2
    check_books(engine)
    with leader.transaction() as session:
        assert unblock_jobs(session) == [job.id]
    assert [message.chunk_id for message in dispatch(leader)] == [handed.chunk_id]
    assert start(engine, queued) is not None
    check_books(engine)


def test_a_chunk_with_outcomes_takes_what_the_credits_cover(engine, leader):
    """Pausing settles its hold; it goes on with a single credit, by balance and by month."""
    set_slots(engine, 1)
    job = new_job(engine, [6], balance=6)
    chunk = start_next(engine)
    with transaction(engine) as session:
        hand_back_chunk(session, chunk.fence, [accepted(0), accepted(1)])
    [message] = dispatch(leader)
    with transaction(engine) as session:
        pause_job(session, job.id)
    drain_stopped(Stages(leader))
    assert balance_of(engine, job) == 4
    assert start(engine, message) is None
    change(engine, "UPDATE crawl_jobs SET paused_at = NULL")
    change(engine, "UPDATE credit_accounts SET monthly_limit = 2")
    assert dispatch(leader) == []
    with leader.transaction() as session:
        assert unblock_jobs(session) == []
    change(engine, "UPDATE credit_accounts SET monthly_limit = 3")
    with leader.transaction() as session:
        assert unblock_jobs(session) == [job.id]
    chunk = start_next(engine)
    assert (chunk.candidates, chunk.unpaid) == (candidates(2, 1), 3)
    check_books(engine)


def test_the_monthly_limit_blocks_with_its_own_reason(engine, leader):
    """With credits but no more of the month, the owner is told so, and a new month unblocks."""
    set_slots(engine, 4)
    job = new_job(engine, [4, 4], balance=100, monthly_limit=4)
    [message] = dispatch(leader)
    assert read_job(engine, job.id)["blocked_reason"] == "monthly_limit"
    assert told(engine, "billing") == ["Monthly limit reached"]
    finish(engine, message)
    with leader.transaction() as session:
        assert unblock_jobs(session) == []
    change(engine, "UPDATE credit_accounts SET usage_period = '2000-01'")
    with leader.transaction() as session:
        assert unblock_jobs(session) == [job.id]
    assert len(dispatch(leader)) == 1


def test_a_job_is_blocked_for_what_is_missing_now(engine, leader):
    """A top-up over the monthly limit: no longer out of credits; with the limit raised it goes on."""
    set_slots(engine, 4)
    job = new_job(engine, [4, 4], balance=4, monthly_limit=4)
    [message] = dispatch(leader)
    finish(engine, message)
    assert read_job(engine, job.id)["blocked_reason"] == "out_of_credits"
    with transaction(engine) as session:
        grant(session, job.user_id, 9, description="More")
        assert unblock_jobs(session) == [job.id]
    assert dispatch(leader) == []
    assert read_job(engine, job.id)["blocked_reason"] == "monthly_limit"
    assert told(engine, "billing") == ["Out of credits", "Monthly limit reached"]
    with transaction(engine) as session:
        assert unblock_jobs(session) == []
    change(engine, "UPDATE credit_accounts SET monthly_limit = 8")
    with transaction(engine) as session:
        assert unblock_jobs(session) == [job.id]
    assert len(dispatch(leader)) == 1


def test_a_round_brings_chunks_along_to_their_jobs_priority(engine, leader):
    """Batch by batch, until nothing differs; then it costs one look."""
    job = new_job(engine, [1] * 3, priority=2)
    with transaction(engine) as session:
        change_priority(session, job.id, 9)
    assert [bring_along(leader), bring_along(leader)] == [True, False]
    assert query(engine, "SELECT DISTINCT priority FROM job_chunks") == [(9,)]
    assert read_job(engine, job.id)["reprioritized_at"] is None


def test_credits_that_come_back_while_holds_are_placed_wait(engine, leader, monkeypatch):
    """What a hold was refused for is what the next look at the account finds; who adds to it comes after."""
    set_slots(engine, 1)
    job = new_job(engine, [5], balance=3)
    look = dispatching.spendable

    def grant_more() -> int:
        with transaction(engine) as other:
            return grant(other, job.user_id, 10, description="In between")

    with ThreadPoolExecutor(1) as thread:

        def look_while_granted(session: Any, account_id: Any) -> Any:
            granted.append(thread.submit(grant_more))
            wait_for_blocked(engine)
            return look(session, account_id)

        granted: list[Future[int]] = []
        monkeypatch.setattr(dispatching, "spendable", look_while_granted)
        [message] = dispatch(leader)
        assert [grant.result(10) for grant in granted] == [10]
    chunk = start(engine, message)
    assert chunk is not None
    assert (chunk.candidates, chunk.unpaid) == (candidates(0, 3), 2)
    check_books(engine)


def test_each_account_pays_for_what_it_can(engine, leader):
    """Of chunks that are dispatched together: one user's are all held, another's as far as the credits go."""
    set_slots(engine, 8)
    rich = new_job(engine, [5, 5], balance=10)
    poor = new_job(engine, [4, 4, 4], balance=6)
    assert {message.chunk_id for message in dispatch(leader)} == {*rich.chunk_ids, *poor.chunk_ids[:2]}
    held = "SELECT held FROM credit_transactions WHERE chunk_id = ANY(:ids) ORDER BY chunk_id"
    assert query(engine, held, ids=[*rich.chunk_ids, *poor.chunk_ids]) == [(5,), (5,), (4,), (2,)]
    assert (balance_of(engine, rich), balance_of(engine, poor)) == (0, 0)
    assert read_job(engine, rich.id)["blocked_reason"] is None
    assert read_job(engine, poor.id)["blocked_reason"] == "out_of_credits"
    check_books(engine)


def test_a_dispatch_of_many_chunks_takes_no_more_statements_than_one_of_one(engine, leader):
    """Of many jobs and users: each statement is a way to the server and back, and all of them one decision."""
    set_slots(engine, 20)
    new_job(engine, [5])
    statements: list[str] = []
    event.listen(
        leader.connection, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    assert len(dispatch(leader)) == 1
    for_one = len(statements)
    for _ in range(4):
        new_job(engine, [5] * 4)
    assert len(dispatch(leader)) == 16
    assert len(statements) == 2 * for_one <= 12


# --------------------------------------------------------------------------------------------------- split


def submit(engine: Engine, store: Store, lines: int, *, max_images: int | None = None) -> NewJob:
    """A job over a stored list of ``lines`` URLs."""
    owner = new_job(engine, [], balance=100_000)
    body = b"".join(b"http://images.test/%d.jpg\n" % number for number in range(lines))
    store.put("inputs/list.txt", body)
    files = [{"name": "list.txt", "bytes": len(body), "candidates": lines}]
    [(project_id,)] = query(engine, "SELECT id FROM projects WHERE user_id = :id", id=owner.user_id)
    request = JobRequest(
        project_id=project_id,
        name="Kingfishers",
        priority=5,
        max_images=max_images or lines,
        source_kind=SourceKind.URL_LIST,
        source={"object": "inputs/list.txt", "files": files},
        candidates=lines,
        unit_price=1,
        fingerprint="f",
    )
    change(engine, "DELETE FROM crawl_jobs WHERE id = :id", id=owner.id)
    with transaction(engine) as session:
        job_id = create_job(session, request, store.root)
    return NewJob(job_id, [], owner.user_id, owner.account_id)


def test_a_long_list_is_split_in_steps(engine, leader, store):
    """Each step is of bounded size; all positions are there once, in chunks that begin small and grow."""
    job = submit(engine, store, 23_456)
    splitter = Splitter(leader, store)
    steps = []
    while splitter.split():
        steps.append(read_job(engine, job.id)["source_position"])
    assert steps == [10_000, 20_000, 23_456]
    row = read_job(engine, job.id)
    assert (row["source_state"], row["source_step"], row["total_images"]) == ("exhausted", 3, 23_456)
    chunks = ranges(engine, job.id)
    assert [chunk[0] for chunk in chunks] == list(range(row["total_chunks"]))
    assert [size for *_, size in chunks][:18] == [50] * 4 + [100] * 4 + [200] * 4 + [400] * 4 + [500] * 2
    assert [size for *_, size in chunks][-5:] == [65, 50, 50, 50, 47]
    ends = [0, *(end for _, _, end, _ in chunks)]
    assert [begin for _, begin, _, _ in chunks] == ends[:-1]
    assert ends[-1] == 23_456
    last = start_all(engine)[-1].candidates[-1]
    assert (last.position, last.url, last.line) == (23_455, "http://images.test/23455.jpg", 23_456)


def start_all(engine: Engine) -> list[Any]:
    """Start every ready chunk, in order of position."""
    chunks = [start(engine, message) for message in queue_ready(engine, 1000)]
    return sorted(chunks, key=lambda chunk: chunk.candidates[0].position)


def test_a_step_that_was_read_but_not_written_is_repeated(engine, leader, store, settings):
    """A step counts once: a second scheduler's, or a crashed one's, is refused by the source's step."""
    job = submit(engine, store, 120)
    crashed, splitter = Splitter(leader, store), Splitter(leader, store)
    with leader.transaction() as session:
        [stale] = splittable_jobs(session)
    assert splitter.split()
    assert not crashed.step(stale)
    assert [size for *_, size in ranges(engine, job.id)] == [50, 50, 20]
    with leader.transaction() as session:
        assert not advance_source(session, stale, {}, SourceState.OPEN, [])
    assert not splitter.split()


@pytest.mark.parametrize("stop", ["cancelled_at = now()", "status = 'cancelled', completed_at = now()"])
def test_a_step_of_a_job_that_was_stopped_meanwhile_is_not_written(engine, stop):
    """Cancelled, or ended by another service, after the step was read: no chunk comes to the job any more."""
    job = new_job(engine, [], max_images=5, source_state=SourceState.SPLITTING)
    with transaction(engine) as session:
        [wanting] = splittable_jobs(session)
    change(engine, f"UPDATE crawl_jobs SET {stop}")
    with transaction(engine) as session:
        step = [NewChunk(0, 0, candidates(0, 5))]
        assert not advance_source(session, wanting, {}, SourceState.EXHAUSTED, step)
    assert read_job(engine, job.id)["total_chunks"] == 0


def test_a_source_may_yield_more_than_was_known(engine):
    """A job has at least as many candidates as were handed out; what is known beyond them stays known."""
    job = new_job(engine, [], max_images=9, source_state=SourceState.SPLITTING)
    for known, found in ((0, 4), (6, 6)):
        change(engine, "UPDATE crawl_jobs SET total_images = :known, source_position = 0", known=known)
        with transaction(engine) as session:
            [wanting] = splittable_jobs(session)
            index = wanting.total_chunks
            step = [NewChunk(index, wanting.position, candidates(0, 4))]
            assert advance_source(session, wanting, {}, SourceState.OPEN, step)
        assert read_job(engine, job.id)["total_images"] == found


@pytest.mark.parametrize(
    "stop", ["cancelled_at = now()", "status = 'cancelled', completed_at = now()", "paused_at = now()"]
)
def test_a_stopped_job_wants_no_candidates(engine, stop):
    """Its source is not read while it is paused, nor once it is cancelled or was ended by another service."""
    new_job(engine, [], max_images=5, source_state=SourceState.OPEN)
    change(engine, f"UPDATE crawl_jobs SET {stop}")
    with transaction(engine) as session:
        assert splittable_jobs(session) == []


def test_a_job_with_enough_under_way_wants_no_candidates(engine):
    """Until one of them fails."""
    new_job(engine, [2], max_images=2, source_state=SourceState.SPLITTING)
    with transaction(engine) as session:
        assert splittable_jobs(session) == []
    chunk = start_next(engine)
    settle_run(engine, chunk, [accepted(0), refused(1)])
    with transaction(engine) as session:
        assert [job.wanted for job in splittable_jobs(session)] == [1]


@pytest.mark.parametrize("source_state", [SourceState.SPLITTING, SourceState.OPEN])
def test_the_source_of_a_job_that_another_service_ended_is_left(engine, source_state):
    """Candidates that were not handed out get no outcome behind its back."""
    met = {"max_images": 1, "valid_images": 1, "total_images": 9, "source_position": 1}
    new_job(engine, [], source_state=source_state)
    columns = ", ".join(f"{name} = {value}" for name, value in met.items())
    change(engine, f"UPDATE crawl_jobs SET status = 'cancelled', completed_at = now(), {columns}")
    for cancelled_at in ("NULL", "now()"):
        change(engine, f"UPDATE crawl_jobs SET cancelled_at = {cancelled_at}")
        with transaction(engine) as session:
            assert (satisfy_source(session), abandon_source(session)) == (None, None)


ENDING = {
    close_job: "source_state = 'exhausted'",
    satisfy_source: "max_images = 1, valid_images = 1, total_images = 1, source_position = 1",
    abandon_source: "cancelled_at = now()",
}


@pytest.mark.parametrize("arrow", ENDING)
def test_a_job_that_another_process_has_locked_is_passed_over(engine, arrow):
    """The scheduler takes the other one, and waits for nobody."""
    first, second = (new_job(engine, [], source_state=SourceState.OPEN) for _ in range(2))
    change(engine, f"UPDATE crawl_jobs SET {ENDING[arrow]}")
    with transaction(engine) as other, transaction(engine) as session:
        other.execute(text("SELECT FROM crawl_jobs WHERE id = :id FOR UPDATE"), {"id": first.id})
        session.execute(text("SET LOCAL lock_timeout = '100ms'"))
        assert [arrow(session), arrow(session)] == [second.id, None]


def test_failures_are_topped_up_until_max_images_are_accepted(engine, leader, store):
    """Accepted and unresolved candidates never exceed the target; what is left over is not needed."""
    job = submit(engine, store, 1000, max_images=120)
    splitter = Splitter(leader, store)
    handed_out = []
    while len(handed_out) < 20 and not read_job(engine, job.id)["completed_at"]:
        splitter.split()
        row = read_job(engine, job.id)
        assert row["source_position"] - row["failed_images"] <= 120
        handed_out.append(row["source_position"])
        for message in queue_ready(engine):
            finish(engine, message, lambda place: accepted(place) if place % 2 else refused(place))
        splitter.end_sources()
        close_jobs(leader)
    row = read_job(engine, job.id)
    assert (row["status"], row["source_state"], row["valid_images"]) == ("completed", "satisfied", 120)
    assert handed_out == sorted(set(handed_out))
    last = handed_out[-1]
    assert query(engine, "SELECT position, position_end FROM failures WHERE reason = 'not_needed'") == [
        (last, 999)
    ]
    assert row["failures"] == {"http_status": last - 120, "not_needed": 1000 - last}
    assert row["valid_images"] + row["failed_images"] == row["total_images"] == 1000
    check_books(engine)


def test_a_source_that_ends_before_the_target_completes_the_job(engine, leader, store):
    """With too few good candidates the job ends with what there was."""
    job = submit(engine, store, 90, max_images=60)
    splitter = Splitter(leader, store)
    for _ in range(3):
        splitter.split()
        for message in queue_ready(engine):
            finish(engine, message, refused)
        splitter.end_sources()
        close_jobs(leader)
    row = read_job(engine, job.id)
    assert (row["status"], row["source_state"], row["failures"]) == (
        "completed",
        "exhausted",
        {"http_status": 90},
    )


def test_a_top_up_waits_for_enough(engine, leader, store):
    """While candidates are unresolved, a few failures do not make a tiny chunk."""
    job = submit(engine, store, 1000, max_images=100)
    splitter = Splitter(leader, store)
    splitter.split()
    first, second = start_all(engine)
    for chunk, chunks_after in ((first, 2), (second, 3)):
        with transaction(engine) as session:
            places = [candidate.position for candidate in chunk.candidates]
            settle_chunk(session, chunk.fence, [refused(places[0]), *map(accepted, places[1:])])
        splitter.split()
        assert read_job(engine, job.id)["total_chunks"] == chunks_after
    assert ranges(engine, job.id)[-1] == (2, 100, 102, 2)


def test_an_input_that_cannot_be_read_now_is_tried_later(engine, leader, store, tmp_path):
    """A store that is away costs its job time, however long, and no other job anything; the log says so once."""
    job = submit(engine, store, 10)
    folder, aside = tmp_path / "store/inputs", tmp_path / "aside"
    folder.rename(aside)
    folder.touch()
    splitter = Splitter(leader, store)
    waits = []
    with capture_logs() as logs:
        for _ in range(12):
            assert not splitter.split()
            waits.append(round(splitter.retry_at[job.id] - time.monotonic()))
            splitter.retry_at.clear()
        assert not splitter.split()
        folder.unlink()
        aside.rename(folder)
        assert not splitter.split()
        splitter.retry_at.clear()
        assert splitter.split()
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, *[300] * 4]
    assert [entry["event"] for entry in logs if entry["event"].startswith("source_")] == [
        "source_unreadable",
        "source_readable_again",
    ]
    assert read_job(engine, job.id)["source_detail"] is None


def test_an_input_that_is_gone_ends_its_source(engine, leader, store, tmp_path):
    """Not at the first look, for a disk may just not be there yet, and never because another store was asked."""
    job = submit(engine, store, 20_000)
    splitter = Splitter(leader, store)
    assert splitter.split()
    body = store.read("inputs/list.txt", 0, 1_000_000)
    store.delete(["inputs/list.txt"])
    elsewhere = Splitter(leader, open_store((tmp_path / "elsewhere").as_uri()))
    for other in [elsewhere] * 5 + [splitter] * 2:
        assert not other.split()
        assert read_job(engine, job.id)["source_state"] == "splitting"
        other.retry_at.clear()
    assert not splitter.split()
    row = read_job(engine, job.id)
    assert (row["source_state"], row["source_position"], row["failures"]) == (
        "exhausted",
        20_000,
        {"cancelled": 10_000},
    )
    assert re.fullmatch(
        "its input breaks off after 10,000 candidates: .*list.txt.*: not found", row["source_detail"]
    )
    store.put("inputs/list.txt", body)
    assert retry(engine, store.root, job.id, ALL_FAILURES).unchunked == 10_000
    while splitter.split():
        pass
    row = read_job(engine, job.id)
    assert (row["source_state"], row["source_position"], row["failures"]) == ("exhausted", 20_000, {})
    assert row["source_detail"] is None


def test_every_job_is_split_in_turn(engine, leader, store, monkeypatch):
    """A round that has no more time goes on with the next job in the next round, the most urgent first."""
    monkeypatch.setattr("scheduler.split.ROUND_SECONDS", 0)
    jobs = [submit(engine, store, 20_001) for _ in range(3)]
    change(engine, "UPDATE crawl_jobs SET priority = 9 WHERE id = :id", id=jobs[2].id)
    splitter = Splitter(leader, store)

    def steps() -> list[int]:
        return [read_job(engine, job.id)["source_step"] for job in jobs]

    rounds = []
    while splitter.split():
        rounds.append(steps())
    once = [[0, 0, 1], [1, 0, 1], [1, 1, 1]]
    assert rounds == [[done + turn for done in row] for turn in range(3) for row in once]


def test_a_step_that_fails_costs_only_its_own_job(engine, leader, store):
    """A row that cannot be split stops neither the others nor the scheduler."""
    bad, good = submit(engine, store, 60), submit(engine, store, 60)
    change(engine, "INSERT INTO job_chunks (job_id, chunk_index) VALUES (:id, 0)", id=bad.id)
    splitter = Splitter(leader, store)
    # Writing the error down may take all of the first round's time.
    assert splitter.split() or splitter.split()
    assert read_job(engine, bad.id)["source_step"] == 0
    assert read_job(engine, good.id)["source_state"] == "exhausted"


# --------------------------------------------------------------------------------------------------- close


def test_a_job_ends_once_and_its_owner_is_told(engine, leader):
    """With every chunk ended the job completes, with one notification and one line of activity."""
    job = new_job(engine, [2, 2])
    first, second = queue_ready(engine)
    finish(engine, first)
    assert close_jobs(leader) == 0
    finish(engine, second, refused)
    change(engine, "UPDATE crawl_jobs SET paused_at = now(), blocked_reason = 'monthly_limit'")
    change(engine, """UPDATE crawl_jobs SET reprioritized_at = now(), task_ids = '["chunk-1.1"]'""")
    assert close_jobs(leader) == 1
    assert close_jobs(leader) == 0
    row = read_job(engine, job.id)
    assert (row["status"], row["progress"]) == ("completed", 100)
    assert (row["paused_at"], row["blocked_reason"], row["reprioritized_at"], row["task_ids"]) == (
        None,
        None,
        None,
        [],
    )
    assert query(engine, "SELECT type, message FROM notifications") == [
        ("success", "2 images accepted for 2 credits, 2 candidates without an image.")
    ]
    assert query(engine, "SELECT action, resource_id FROM activity_logs") == [
        ("crawl_job.completed", str(job.id))
    ]
    check_books(engine)


def test_a_closed_job_leaves_no_partial_file(engine, leader, tmp_path):
    """What a killed worker left half written in the job's folder is gone when the job has ended."""
    partial_file = tmp_path / f"{'a' * 64}.jpg#1"
    partial_file.touch()
    os.utime(partial_file, (1, 1))
    job = new_job(engine, [1], source_state="exhausted", store_url=tmp_path.as_uri())
    started = start_next(engine)
    with transaction(engine) as session:
        settle_chunk(session, started.fence, [refused(0)])
    assert close_jobs(leader) == 1
    assert read_job(engine, job.id)["status"] == "completed"
    assert not partial_file.exists()


def test_a_job_with_a_failed_chunk_has_failed(engine, leader):
    """It ends like any other, and says so."""
    job = new_job(engine, [2, 2])
    first, second = queue_ready(engine)
    finish(engine, first)
    started = start(engine, second)
    assert started is not None
    change(
        engine,
        "UPDATE job_chunks SET lease_until = now() - interval '1 s', retry_count = 99 WHERE status = 'processing'",
    )
    rescue_expired(leader)
    assert close_jobs(leader) == 1
    row = read_job(engine, job.id)
    assert (row["status"], row["failures"]) == ("failed", {"worker_lost": 2})
    assert query(engine, "SELECT type FROM notifications") == [("error",)]
    check_books(engine)


def test_a_cancelled_job_is_drained_and_closed(engine, leader, store):
    """What waits is drained, what was not handed out is a range, and nothing stays held."""
    job = submit(engine, store, 400, max_images=100)
    splitter = Splitter(leader, store)
    splitter.split()
    set_slots(engine, 1)
    first, _second = dispatch(leader)
    finish(engine, first)
    with transaction(engine) as session:
        assert cancel_job(session, job.id)
    splitter.end_sources()
    drain_stopped(Stages(leader))
    assert close_jobs(leader) == 1
    row = read_job(engine, job.id)
    assert (row["status"], row["valid_images"], row["failures"]) == ("cancelled", 50, {"cancelled": 350})
    assert balance_of(engine, job) == 100_000 - 50
    assert query(engine, "SELECT type FROM notifications") == [("info",)]
    check_books(engine)


# --------------------------------------------------------------------------------------------------- loop


def test_a_stage_that_fails_is_tried_again_later(leader):
    """Its error is not the scheduler's end, other stages and jobs go on, and it waits a few seconds."""
    stages = Stages(leader)
    calls = []

    def fail() -> str:
        calls.append("called")
        with leader.transaction() as session:
            session.execute(text("SELECT 1 / 0"))
        return "done"

    assert stages.run("drain", fail, "failed", 1) == "failed"
    assert stages.run("drain", fail, "failed", 1) == "failed"
    assert len(calls) == 1
    assert stages.run("drain", lambda: "done", "failed", 2) == "done"
    stages.retry_at["drain", 1] = 0
    assert stages.run("drain", lambda: "done", "failed", 1) == "done"
    assert not stages.retry_at


def test_a_lost_session_is_no_failed_stage(engine, leader):
    """It ends the leadership: another connection would write without the lock."""
    [pid] = lock_holders(engine)

    def write_without_session() -> None:
        change(engine, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        with leader.transaction() as session:
            session.execute(text("SELECT"))

    with pytest.raises(OperationalError):
        Stages(leader).run("drain", write_without_session, None)


def test_a_job_that_cannot_be_drained_stops_no_other(engine, leader):
    """One cancelled job with a broken row stays as it is while the next is drained."""
    broken, fine = new_job(engine, [3]), new_job(engine, [3])
    change(engine, "UPDATE job_chunks SET image_range = '{}' WHERE job_id = :id", id=broken.id)
    with transaction(engine) as session:
        assert cancel_job(session, broken.id)
        assert cancel_job(session, fine.id)
    stages = Stages(leader)
    drain_stopped(stages)
    assert list(stages.retry_at) == [("drain", broken.id)]
    assert close_jobs(leader) == 1
    assert read_job(engine, fine.id)["status"] == "cancelled"


def test_leases_are_judged_once_workers_could_renew_them():
    """Not right after the leadership began, nor after a gap in it, even one that only the wall clock shows."""
    patience = Patience(100.0, 1000.0)
    assert not patience.over(100.0, 1000.0)
    now, wall = 100.0, 1000.0
    for gap in (0.0, GAP_SECONDS_MAX + 1):
        wall += gap
        for _ in range(int(RENEWAL_SECONDS)):
            assert not patience.over(now, wall)
            now, wall = now + 1, wall + 1
        assert patience.over(now, wall)
    now, wall = now + GAP_SECONDS_MAX + 1, wall + GAP_SECONDS_MAX + 1
    assert not patience.over(now, wall)


def test_a_server_clock_that_jumps_costs_no_lease(engine, leader):
    """All leases seem expired then. Nothing is taken by a time that nobody looked at, nor before workers can renew,
    which they do at their next look.
    """
    new_job(engine, [1])
    chunk = start_next(engine)
    patience = Patience(time.monotonic(), server_time(leader).timestamp() - 3600)
    change(engine, "UPDATE job_chunks SET lease_until = now() - interval '1 h'")
    judge_leases(leader, patience)
    before = server_time(leader) - datetime.timedelta(hours=2)
    rescue_expired(leader, before)
    assert read_chunk(engine, chunk.fence.chunk_id)["status"] == "processing"
    for lease in ("- interval '1 h'", "+ interval '1 h'"):  # Set forward, set back.
        change(engine, f"UPDATE job_chunks SET lease_until = now() {lease}")
        with transaction(engine) as session:
            assert renew_lease(session, chunk.fence, 30).owned
        left = query(engine, "SELECT date_part('epoch', lease_until - now()) FROM job_chunks")[0][0]
        assert 20 < left <= 30
    change(engine, "UPDATE job_chunks SET lease_until = now() - interval '1 s'")
    patience.until = 0
    judge_leases(leader, patience)
    assert read_chunk(engine, chunk.fence.chunk_id)["status"] == "pending"
    check_books(engine)


def test_lost_messages_do_not_pile_up(engine, leader):
    """A message is sent again only for chunks that have none, and only while a worker could take it."""
    new_job(engine, [2] * 3)
    messages = queue_ready(engine)
    change(engine, "UPDATE job_chunks SET queued_at = now() - interval '2 min'")
    assert find_lost_messages(leader, 0) == []
    set_slots(engine, 2)
    assert find_lost_messages(leader, 3) == []
    assert len(find_lost_messages(leader, 2)) == 1
    change(engine, "UPDATE job_chunks SET queued_at = now() - interval '6 s'")
    assert find_lost_messages(leader, 2) == []
    assert {each.chunk_id for each in find_lost_messages(leader, 0)} == {each.chunk_id for each in messages}


def test_only_jobs_with_something_to_drain_are_stopped(engine, leader):
    """A paused job is looked at while it holds credits for a chunk without a worker, a cancelled one while a chunk
    waits; one that goes on never, nor one that another service ended or made.
    """
    running, paused, cancelled, going_on, foreign, ended = (new_job(engine, [2]) for _ in range(6))
    [first, _, message, back, _, _] = queue_ready(engine)
    assert start(engine, first) is not None
    chunk = start(engine, back)
    assert chunk is not None
    with transaction(engine) as session:
        assert hand_back_chunk(session, chunk.fence, []) is not None
    assert chunk.fence.job_id == going_on.id
    change(engine, "UPDATE crawl_jobs SET source_kind = NULL WHERE id = :id", id=foreign.id)
    change(
        engine,
        "UPDATE crawl_jobs SET status = 'cancelled', cancelled_at = now(), completed_at = now() WHERE id = :id",
        id=ended.id,
    )
    with transaction(engine) as session:
        for job in (running, paused, foreign):
            assert pause_job(session, job.id)
        assert cancel_job(session, cancelled.id)
    assert find_stopped(leader) == [(paused.id, False), (cancelled.id, True)]
    assert start(engine, message) is None
    drain_stopped(Stages(leader))
    assert find_stopped(leader) == []
    assert [balance_of(engine, job) for job in (paused, going_on)] == [1000, 998]
    change(engine, "DELETE FROM crawl_jobs WHERE id = :id", id=ended.id)
    check_books(engine)


def test_a_job_of_another_service_is_left_alone(engine, leader, store):
    """Without a source nothing is split, dispatched, drained or refreshed; cancelling ends it at once."""
    set_slots(engine, 4)
    foreign = new_job(engine, [2], source_kind=None, source_state=SourceState.SPLITTING)
    change(engine, """UPDATE crawl_jobs SET task_ids = '["theirs"]'""")
    change(engine, "UPDATE job_chunks SET candidates = NULL, size = 0")
    splitter = Splitter(leader, store)
    with transaction(engine) as session:
        pause_job(session, foreign.id)
        refresh_task_ids(session)
    change(engine, "UPDATE crawl_jobs SET paused_at = NULL")
    assert not splitter.split()
    assert dispatch(leader) == []
    assert read_job(engine, foreign.id)["task_ids"] == ["theirs"]
    with transaction(engine) as session:
        assert cancel_job(session, foreign.id)
        assert not cancel_job(session, foreign.id)
    row = read_job(engine, foreign.id)
    assert (row["status"], row["completed_at"] is None) == ("cancelled", False)
    splitter.end_sources()
    assert find_stopped(leader) == []
    assert close_jobs(leader) == 0
    assert read_job(engine, foreign.id)["source_state"] == "splitting"


def test_a_job_that_another_service_ended_is_cancelled_properly(engine, leader, store):
    """What its chunks held comes back, each candidate has an outcome, and nothing stays in flight."""
    set_slots(engine, 1)
    job = new_job(engine, [3, 2])
    assert dispatch(leader)
    change(engine, "UPDATE crawl_jobs SET status = 'cancelled', completed_at = now()")
    stages = Stages(leader)
    reopen_cut_off(leader)
    drain_stopped(stages)
    assert close_jobs(leader) == 1
    row = read_job(engine, job.id)
    assert (row["status"], row["failures"], balance_of(engine, job)) == ("cancelled", {"cancelled": 5}, 1000)
    reopen_cut_off(leader)
    assert read_job(engine, job.id)["status"] == "cancelled"
    check_books(engine)


@pytest.mark.parametrize(
    "columns",
    [
        "status = 'running'",
        "status = 'cancelled', completed_at = now(), deleting_at = now()",
        "status = 'cancelled', completed_at = now(), source_kind = NULL",
    ],
)
def test_only_what_another_service_ended_of_ours_is_reopened(engine, columns):
    """No job that runs, that is being deleted, or that was that service's own."""
    new_job(engine, [3])
    assert queue_ready(engine)
    change(engine, f"UPDATE crawl_jobs SET {columns}")
    with transaction(engine) as session:
        assert reopen_cut_off_jobs(session) == []


# -------------------------------------------------------------------------------------------------- broker


@pytest.mark.parametrize("answers", [False, True])
def test_a_leader_does_not_wait_long_for_redis(database_url, answers):
    """Redis that refuses, or that takes connections and says nothing, is away before a session is idle too long."""
    code = """if True:
        import sys, time
        from models.queueing import Message
        from models.settings import read_settings
        from scheduler.broker import Broker
        broker = Broker(read_settings())
        for call in (broker.waiting, lambda: broker.send([Message(1, 1, 1, 5)])):
            began = time.monotonic()
            call()
            print(broker.reachable, time.monotonic() - began, file=sys.stderr)
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if answers else 1
        environment = os.environ | {
            "PIXTRAWL_DATABASE_URL": database_url,
            "PIXTRAWL_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    calls = [line.split() for line in done.stderr.splitlines()]
    assert [reachable for reachable, _ in calls] == ["False", "False"]
    assert max(float(seconds) for _, seconds in calls) < IDLE_SECONDS_MAX - 1


# ---------------------------------------------------------------------------------------------- leadership

SCHEDULER = """if True:
    import signal, sys, threading
    import scheduler.leader
    from models.settings import read_settings
    from scheduler.loop import run_scheduler
    scheduler.leader.IDLE_SECONDS_MAX = 3
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run_scheduler(read_settings(), stop)
"""


class Scheduler:
    """One scheduler process and what it has said."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", SCHEDULER], env=environment, stdout=output
            )

    def said(self, event: str) -> int:
        """How often it has said ``event``."""
        return len(re.findall(rf"\b{event}\b", self.log.read_text()))


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> float:
    """Wait until ``condition`` holds; the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "waited too long"
        time.sleep(0.05)
    return time.monotonic() - began


def lock_holders(engine: Engine) -> list[int]:
    """Backends that hold the leader's lock."""
    statement = """SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    return [pid for (pid,) in query(engine, statement)]


@pytest.fixture
def schedulers(engine, settings, services, tmp_path) -> Iterator[list[Scheduler]]:
    """Two scheduler processes on the same services."""
    environment = settings.environment() | {"PIXTRAWL_REDIS_URL": services.redis_url}
    both = [Scheduler(environment, tmp_path / f"{number}.log") for number in range(2)]
    yield both
    for scheduler in both:
        scheduler.process.send_signal(signal.SIGCONT)
        scheduler.process.terminate()
    assert [scheduler.process.wait(10) for scheduler in both] == [0, 0]
    assert lock_holders(engine) == []


def test_one_scheduler_leads_and_another_takes_over(engine, schedulers, store):
    """A leader without its session, and then a stopped one, is replaced in under ten seconds and does no harm."""

    def leading() -> list[Scheduler]:
        return [
            scheduler
            for scheduler in schedulers
            if scheduler.said("leader") > scheduler.said("database_away")
        ]

    wait_until(lambda: len(leading()) == 1 and sum(each.said("standby") for each in schedulers) == 1)
    [first] = lock_holders(engine)

    change(engine, "SELECT pg_terminate_backend(:pid)", pid=first)
    assert wait_until(lambda: lock_holders(engine) not in ([], [first])) < 10
    wait_until(lambda: len(leading()) == 1)
    [second] = lock_holders(engine)

    [old] = leading()
    [other] = (scheduler for scheduler in schedulers if scheduler is not old)
    wait_until(lambda: other.said("standby") >= 1)
    before = other.said("leader")
    old.process.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: other.said("leader") > before) < 10
    [third] = lock_holders(engine)
    assert third != second

    old.process.send_signal(signal.SIGCONT)
    wait_until(lambda: old.said("database_away") >= 1 and old.said("standby") >= 1)
    job = submit(engine, store, 120)
    wait_until(lambda: read_job(engine, job.id)["source_state"] == "exhausted")
    assert lock_holders(engine) == [third]
    assert other.said("job_split") == 1
    assert old.said("job_split") == 0
