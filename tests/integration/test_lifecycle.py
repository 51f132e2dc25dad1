"""The arrows of a chunk on real PostgreSQL: guards, outcomes, counters, and commits whose answer never came."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models import ending
from models.credits import CreditError
from models.database import transaction
from models.ending import drain_cancelled, drain_paused, rescue_chunk
from models.job_lifecycle import cancel_job, pause_job, resume_job
from models.lifecycle import (
    RENEW,
    Fence,
    StartedChunk,
    already_written,
    checkpoint_chunk,
    give_up_chunk,
    hand_back_chunk,
    renew_lease,
    settle_chunk,
    settle_short_chunk,
    start_chunk,
)
from models.outcomes import Outcome, Reason
from models.prioritizing import change_priority
from models.queueing import publish_again
from models.recording import Tally
from tests.support.crawling import (
    LEASE_SECONDS,
    accepted,
    balance_of,
    change,
    check_books,
    expire_lease,
    new_job,
    query,
    queue_ready,
    read_chunk,
    read_job,
    refused,
    start,
    start_next,
    wait_for_blocked,
)
from worker import writing
from worker.writing import LostChunkError, commit

Arrow = Callable[[Session, Fence, list[Outcome]], Tally | None]


def checkpoint(session: Session, fence: Fence, outcomes: list[Outcome]) -> Tally | None:
    """checkpoint_chunk with the tests' lease."""
    return checkpoint_chunk(session, fence, outcomes, LEASE_SECONDS)


ARROWS: list[Arrow] = [checkpoint, settle_chunk, hand_back_chunk]


def write(engine: Engine, arrow: Arrow, fence: Fence, outcomes: list[Outcome]) -> Tally | None:
    """Commit one arrow."""
    with transaction(engine) as session:
        return arrow(session, fence, outcomes)


def moved_on(fence: Fence) -> Fence:
    """The fence after one more checkpoint."""
    return replace(fence, checkpoint=fence.checkpoint + 1)


def positions(chunk: StartedChunk | None) -> list[int]:
    """Where the candidates of a started chunk stand."""
    assert chunk is not None
    return [candidate.position for candidate in chunk.candidates]


def test_a_message_starts_its_attempt_once(engine):
    """The first of two equal messages starts chunk and job; the second, and one of another attempt, do nothing."""
    job = new_job(engine, [3])
    [message] = queue_ready(engine)
    assert start(engine, replace(message, attempt=message.attempt - 1)) is None
    assert start(engine, replace(message, attempt=message.attempt + 1)) is None
    assert read_job(engine, job.id)["status"] == "pending"

    assert positions(start(engine, message)) == [0, 1, 2]
    assert start(engine, message) is None
    assert start(engine, message, "another@test") is None
    chunk = read_chunk(engine, message.chunk_id)
    assert (chunk["status"], chunk["queued_at"], chunk["worker"]) == ("processing", None, "worker@test")
    row = read_job(engine, job.id)
    assert (row["status"], row["active_chunks"]) == ("running", 1)
    assert row["started_at"] is not None
    check_books(engine)


def test_a_job_starts_with_its_first_chunk(engine):
    """The others change nothing of when it was."""
    job = new_job(engine, [1, 1])
    start_next(engine)
    first = read_job(engine, job.id)["started_at"]
    start_next(engine)
    assert read_job(engine, job.id)["started_at"] == first


def end_elsewhere(session: Session, job_id: int) -> bool:
    """What another service may do to a job."""
    ended = "UPDATE crawl_jobs SET status = 'cancelled', completed_at = now() WHERE id = :id RETURNING id"
    return session.execute(text(ended), {"id": job_id}).first() is not None


@pytest.mark.parametrize("stop", [pause_job, cancel_job, end_elsewhere])
def test_a_stopped_job_starts_no_chunk(engine, stop):
    """A message that arrives after its job was paused, cancelled or ended by another service does nothing."""
    job = new_job(engine)
    [message] = queue_ready(engine)
    with transaction(engine) as session:
        assert stop(session, job.id)
    assert start(engine, message) is None
    assert read_chunk(engine, message.chunk_id)["status"] == "pending"


def urgent(session: Session, job_id: int) -> bool:
    """change_priority to the highest."""
    return change_priority(session, job_id, 10)


@pytest.mark.parametrize("paused_at", ["NULL", "now()"])
@pytest.mark.parametrize("state", ["status = 'completed', completed_at = now()", "cancelled_at = now()"])
def test_a_job_that_has_ended_or_is_cancelled_is_not_changed(engine, state, paused_at):
    """It is neither cancelled nor paused, resumed or made more urgent."""
    job = new_job(engine)
    change(engine, f"UPDATE crawl_jobs SET {state}, paused_at = {paused_at}")
    before = read_job(engine, job.id)
    with transaction(engine) as session:
        assert not any(arrow(session, job.id) for arrow in (cancel_job, pause_job, resume_job, urgent))
    assert read_job(engine, job.id) == before


def test_a_job_is_paused_and_resumed_once(engine):
    """Only a running job is paused, and only a paused one resumed."""
    job = new_job(engine)
    with transaction(engine) as session:
        arrows = (resume_job, pause_job, pause_job, resume_job, resume_job)
        assert [arrow(session, job.id) for arrow in arrows] == [False, True, False, True, False]


def test_a_start_whose_commit_went_unseen_is_found_again(engine):
    """Asked again, the worker that already owns the attempt has started it; another worker has not."""
    new_job(engine, [4])
    [message] = queue_ready(engine)
    started = start(engine, message)
    assert started is not None
    ask = partial(start_chunk, chunk_id=message.chunk_id, attempt=message.attempt, lease_seconds=30)
    with transaction(engine) as session:
        assert ask(session, worker="worker@test", again=True) == started
        assert ask(session, worker="worker@test") is None
        assert ask(session, worker="another@test", again=True) is None
        assert ask(session, worker="worker@test", attempt=message.attempt + 1, again=True) is None
    check_books(engine)


def test_a_worker_gets_no_more_than_its_open_hold_covers(engine):
    """What was held before and given back covers nothing; nor does a hold that another service ended."""
    job = new_job(engine, [3], balance=3)
    queue_ready(engine)
    with transaction(engine) as session:
        assert pause_job(session, job.id)
        assert drain_paused(session, job.id) == 1
        assert resume_job(session, job.id)
    change(engine, "UPDATE credit_accounts SET monthly_limit = 1")
    chunk = start_next(engine)
    assert (positions(chunk), chunk.unpaid) == ([0], 2)
    write(engine, hand_back_chunk, chunk.fence, [accepted(0)])
    [message] = queue_ready(engine)
    change(engine, "UPDATE credit_transactions SET status = 'cancelled' WHERE status = 'pending'")
    again = start(engine, message)
    assert again is not None
    assert (positions(again), again.unpaid) == ([], 2)


def test_the_next_attempt_gets_only_what_has_no_outcome(engine):
    """Images, single failures and ranges of failures of earlier attempts are left out; other jobs' say nothing."""
    new_job(engine, [9], priority=9)
    outcomes = [*map(accepted, range(5)), *map(refused, range(5, 9))]
    assert write(engine, settle_chunk, start_next(engine).fence, outcomes) is not None
    new_job(engine, [3, 9])
    first = start_next(engine)
    write(engine, settle_chunk, first.fence, [refused(place) for place in range(3)])
    chunk = start_next(engine)
    write(engine, hand_back_chunk, chunk.fence, [accepted(3), refused(6)])
    change(
        engine,
        """WITH taken AS (
            INSERT INTO failures (job_id, chunk_id, position, position_end, reason)
            VALUES (:job_id, :chunk_id, 8, 10, 'cancelled'))
        UPDATE job_chunks SET failed = failed + 3 WHERE id = :chunk_id""",
        job_id=chunk.fence.job_id,
        chunk_id=chunk.fence.chunk_id,
    )
    again = start_next(engine)
    assert again.fence.attempt == 2
    assert positions(again) == [4, 5, 7, 11]


def test_every_write_counts_what_it_writes(engine):
    """Chunk, job, account and day agree after a checkpoint, a hand back and a settlement."""
    job = new_job(engine, [4, 6], unit_price=3)
    chunk = start_next(engine)
    tally = write(engine, checkpoint, chunk.fence, [accepted(0), refused(1)])
    assert tally == Tally(1, {"http_status": 1}, downloaded=1, stored_bytes=100, wire_bytes=157)
    check_books(engine)
    write(engine, hand_back_chunk, moved_on(chunk.fence), [accepted(2)])
    check_books(engine)
    assert (read_job(engine, job.id)["active_chunks"], balance_of(engine, job)) == (0, 1000 - 4 * 3)

    chunk = start_next(engine)
    assert positions(chunk) == [3]
    write(engine, settle_chunk, chunk.fence, [refused(3, Reason.CORRUPT, downloaded=True)])
    check_books(engine)
    row = read_job(engine, job.id)
    assert row["failures"] == {"http_status": 1, "corrupt": 1}
    assert (row["downloaded_images"], row["wire_bytes"], row["completed_chunks"]) == (3, 314, 1)
    assert row["progress"] == 40
    assert balance_of(engine, job) == 1000 - 2 * 3


def test_the_same_bytes_are_one_image_of_a_job(engine):
    """Within a batch and across chunks the first image counts and the others are duplicates of it."""
    job = new_job(engine, [3, 2])
    first, second = start_next(engine), start_next(engine)
    write(engine, settle_chunk, first.fence, [accepted(2, "a"), accepted(1, "b"), accepted(0, "a")])
    other = new_job(engine, [1])
    write(engine, settle_chunk, start_next(engine).fence, [accepted(0, "b")])
    write(engine, settle_chunk, second.fence, [accepted(3, "b"), accepted(4, "c")])
    images = "SELECT position FROM images WHERE crawl_job_id = :id ORDER BY 1"
    assert query(engine, images, id=job.id) == [(0,), (1,), (4,)]
    assert query(engine, images, id=other.id) == [(0,)]
    failures = query(engine, "SELECT position, reason, detail FROM failures ORDER BY 1")
    assert failures == [
        (2, "duplicate", "the same bytes as candidate 0"),
        (3, "duplicate", "the same bytes as candidate 1"),
    ]
    assert balance_of(engine, job) == 1000 - 3
    check_books(engine)


def test_how_the_transfer_went_is_recorded(engine):
    """Of images, of failures, and of what turns out to be a duplicate; NULL where nothing was tried."""
    new_job(engine, [4])
    chunk = start_next(engine)
    outcomes = [
        replace(accepted(0, "a"), http_status=203, attempts=2, elapsed_ms=70),
        replace(accepted(1, "a"), http_status=200, attempts=1, elapsed_ms=80),
        refused(2, Reason.TIMEOUT, attempts=3, elapsed_ms=180_000),
        refused(3, Reason.INVALID_URL),
    ]
    write(engine, settle_chunk, chunk.fence, outcomes)
    went = "SELECT position, http_status, attempts, elapsed_ms FROM"
    assert query(engine, f"{went} images") == [(0, 203, 2, 70)]
    assert query(engine, f"{went} failures ORDER BY 1") == [
        (1, 200, 1, 80),
        (2, None, 3, 180_000),
        (3, None, None, None),
    ]


def test_the_same_bytes_in_two_transactions_at_once(engine):
    """Two workers that store the same 200 pictures in opposite order, and meet midway, get each once."""
    job = new_job(engine, [200] * 2)
    chunks = [start_next(engine, "a@test"), start_next(engine, "b@test")]
    outcomes = [
        [accepted(place, place) for place in range(200)],
        [accepted(place, place - 200) for place in range(399, 199, -1)],
    ]
    with engine.connect() as third, ThreadPoolExecutor(2) as threads:
        insert = """INSERT INTO images (crawl_job_id, position, original_url, filename, sha256)
            VALUES (:job_id, 1000, 'u', 'f', :sha256)"""
        third.execute(text(insert), {"job_id": job.id, "sha256": accepted(0, 100).sha256})
        writes = [
            threads.submit(write, engine, settle_chunk, chunk.fence, made)
            for chunk, made in zip(chunks, outcomes, strict=True)
        ]
        wait_for_waiting(engine, 2)
        third.rollback()
    assert sum(tally.accepted for tally in (each.result() for each in writes) if tally) == 200
    assert read_job(engine, job.id)["failures"] == {"duplicate": 200}
    check_books(engine)


def wait_for_waiting(engine: Engine, sessions: int) -> None:
    """Return once so many sessions of this database wait for a lock."""
    deadline = time.monotonic() + 4
    waiting = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    while query(engine, waiting) != [(sessions,)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_text_that_postgresql_cannot_hold_is_written_all_the_same(engine):
    """A NUL or a lone surrogate in a URL, or in what a server said, does not stop the chunk's other outcomes."""
    new_job(engine, [3])
    chunk = start_next(engine)
    outcomes: list[Outcome] = [
        refused(0, Reason.INVALID_URL, url="http://images.test/\0.jpg", detail="a \0 in it"),
        refused(1, final_url="http://images.test/\udcff", detail="\udcff"),
        replace(accepted(2), original_url="http://images.test/2\0"),
    ]
    assert write(engine, settle_chunk, chunk.fence, outcomes) is not None
    assert query(engine, "SELECT url, detail FROM failures WHERE position = 0") == [
        ("http://images.test/\ufffd.jpg", "a \ufffd in it")
    ]
    check_books(engine)


@pytest.mark.parametrize("arrow", ARROWS)
def test_a_fence_lets_one_write_through(engine, arrow):
    """Whatever is written a second time under the same fence writes nothing, and the first is found written."""
    new_job(engine, [2])
    fence = start_next(engine).fence
    outcomes: list[Outcome] = [accepted(0), refused(1)]
    with transaction(engine) as session:
        assert not already_written(session, fence)
    assert write(engine, arrow, fence, outcomes) is not None
    for second in ARROWS:
        assert write(engine, second, fence, outcomes) is None
    with transaction(engine) as session:
        assert already_written(session, fence)
        assert not already_written(session, moved_on(fence))
    check_books(engine)


@pytest.mark.parametrize(
    "part", [{"attempt": 0}, {"attempt": 2}, {"worker": "another@test"}, {"checkpoint": 0}]
)
def test_each_part_of_a_fence_counts(engine, part):
    """With another attempt, checkpoint or worker alone, nothing is written, given up, renewed or found written."""
    new_job(engine, [3])
    chunk = start_next(engine)
    assert write(engine, checkpoint, chunk.fence, [accepted(0)]) is not None
    fence = replace(moved_on(chunk.fence), **part)
    before = read_chunk(engine, fence.chunk_id)
    with transaction(engine) as session:
        assert not already_written(
            session, replace(chunk.fence, **(part | {"checkpoint": fence.checkpoint - 1}))
        )
        assert give_up_chunk(session, fence) is None
    for arrow in ARROWS:
        assert write(engine, arrow, fence, [accepted(1)]) is None
    if "checkpoint" not in part:
        with transaction(engine) as session:
            assert not renew_lease(session, fence, 10 * LEASE_SECONDS).owned
            session.execute(RENEW, {**asdict(fence), "lease_seconds": 10 * LEASE_SECONDS})
    assert read_chunk(engine, fence.chunk_id) == before


def test_two_writes_at_once_under_one_fence(engine):
    """Nobody comes between a look at the fence and what is written: the second writer waits, and does nothing."""
    job = new_job(engine, [2])
    fence = start_next(engine).fence
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            assert checkpoint(session, fence, [refused(0)]) is not None
            second = thread.submit(write, engine, settle_chunk, fence, [accepted(0), accepted(1)])
            wait_for_blocked(engine)
        assert second.result(10) is None
    assert read_job(engine, job.id)["valid_images"] == 0
    check_books(engine)


def test_a_worker_that_lost_its_chunk_writes_nothing(engine):
    """After a rescue neither the old attempt nor its lease can be used, before and after the next start."""
    job = new_job(engine, [2])
    old = start_next(engine, "zombie@test").fence
    expire_lease(engine, old.chunk_id)
    with transaction(engine) as session:
        assert rescue_chunk(session, 5) is not None

    def zombie_is_refused() -> None:
        for arrow in ARROWS:
            assert write(engine, arrow, old, [accepted(0)]) is None
        with transaction(engine) as session:
            assert not renew_lease(session, old, LEASE_SECONDS).owned
            assert not already_written(session, old)

    zombie_is_refused()
    chunk = start_next(engine)
    zombie_is_refused()
    assert query(engine, "SELECT count(*) FROM images") == [(0,)]
    write(engine, settle_chunk, chunk.fence, [accepted(0), accepted(1)])
    zombie_is_refused()
    assert balance_of(engine, job) == 998
    check_books(engine)


def test_a_chunk_ends_with_an_outcome_for_each_candidate(engine):
    """A settlement that forgets a candidate, or comes without a hold, is refused as a whole."""
    new_job(engine, [2])
    fence = start_next(engine).fence
    with pytest.raises(IntegrityError, match="ck_job_chunks_ended_whole"):
        write(engine, settle_chunk, fence, [accepted(0)])
    change(engine, "UPDATE job_chunks SET accepted = 1 WHERE id = :id", id=fence.chunk_id)
    cancelled = "UPDATE credit_transactions SET status = 'cancelled' WHERE chunk_id = :id"
    change(engine, cancelled, id=fence.chunk_id)
    with pytest.raises(CreditError, match="without an open hold"):
        write(engine, settle_chunk, fence, [accepted(1)])
    assert query(engine, "SELECT count(*) FROM images") == [(0,)]


def test_a_parked_chunk_waits_until_it_is_available(engine):
    """A chunk handed back for later is not claimed before, keeps its hold, and its outcomes reset the losses."""
    job = new_job(engine, [3])
    fence = start_next(engine).fence
    change(engine, "UPDATE job_chunks SET retry_count = 4 WHERE id = :id", id=fence.chunk_id)
    with transaction(engine) as session:
        hand_back_chunk(session, fence, [accepted(0)], available_in_seconds=60)
    assert queue_ready(engine) == []
    assert balance_of(engine, job) == 997
    assert read_chunk(engine, fence.chunk_id)["retry_count"] == 0
    change(engine, "UPDATE job_chunks SET available_at = now() WHERE id = :id", id=fence.chunk_id)
    assert positions(start_next(engine)) == [1, 2]
    assert balance_of(engine, job) == 997
    check_books(engine)


@pytest.mark.parametrize(("outcomes", "left"), [([], 2), ([refused(0)], 0)])
@pytest.mark.parametrize("arrow", [checkpoint, settle_short_chunk, hand_back_chunk])
def test_only_an_outcome_forgives_losses(engine, arrow, outcomes, left):
    """A write without any leaves the count of lost leases as it is."""
    new_job(engine, [2])
    fence = start_next(engine).fence
    change(engine, "UPDATE job_chunks SET retry_count = 2")
    assert write(engine, arrow, fence, outcomes) is not None
    assert read_chunk(engine, fence.chunk_id)["retry_count"] == left


def test_a_checkpoint_begins_the_lease_anew(engine):
    """A worker that comes late, but before the rescue, keeps its chunk."""
    new_job(engine, [2])
    fence = start_next(engine).fence
    expire_lease(engine, fence.chunk_id)
    assert write(engine, checkpoint, fence, []) is not None
    with transaction(engine) as session:
        assert rescue_chunk(session, 5) is None


def test_renewing_a_lease_waits_for_nobody(engine):
    """Not even for a commit of the same worker: that renews the lease itself."""
    new_job(engine, [2])
    fence = start_next(engine).fence
    with transaction(engine) as session, transaction(engine) as look:
        assert checkpoint(session, fence, [accepted(0)]) is not None
        look.execute(text("SET LOCAL lock_timeout = '100ms'"))
        assert renew_lease(look, fence, 10 * LEASE_SECONDS).owned


def test_lost_leases_in_a_row_fail_a_chunk(engine):
    """One lease too many without an outcome fails the rest as worker_lost; an outcome starts the count anew."""
    job = new_job(engine, [5])

    def lose() -> bool:
        chunk = start_next(engine)
        expire_lease(engine, chunk.fence.chunk_id)
        with transaction(engine) as session:
            rescued = rescue_chunk(session, 2)
            assert rescued is not None
            assert rescue_chunk(session, 2) is None
        check_books(engine)
        change(engine, "UPDATE job_chunks SET available_at = NULL")  # The pause between losses is over.
        return rescued.failed

    assert [lose(), lose()] == [False, False]
    chunk = start_next(engine)
    assert chunk.retry_count == 2
    write(engine, checkpoint, chunk.fence, [accepted(1)])
    write(engine, hand_back_chunk, moved_on(chunk.fence), [])
    assert [lose(), lose(), lose()] == [False, False, True]
    assert read_job(engine, job.id)["failures"] == {"worker_lost": 4}
    assert balance_of(engine, job) == 999


def test_a_chunk_whose_candidates_all_have_outcomes_counts_no_empty_reason(engine):
    """Cancelling a job whose last chunk lost its worker between checkpoint and settlement adds no failure."""
    job = new_job(engine, [1])
    fence = start_next(engine).fence
    write(engine, checkpoint, fence, [accepted(0)])
    expire_lease(engine, fence.chunk_id)
    with transaction(engine) as session:
        rescue_chunk(session, 5)
        cancel_job(session, job.id)
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id) == 1
    assert read_job(engine, job.id)["failures"] == {}
    check_books(engine)


def test_a_chunk_without_candidates_ends_without_a_failure(engine):
    """As another service may have made it."""
    job = new_job(engine, [0])
    with transaction(engine) as session:
        assert cancel_job(session, job.id)
        assert drain_cancelled(session, job.id) == 1
    assert query(engine, "SELECT FROM failures") == []
    check_books(engine)


def test_cancelling_drains_what_no_worker_has(engine):
    """Waiting and queued chunks end as cancelled, in batches, and what was held for them comes back."""
    job = new_job(engine, [3, 3, 3, 3], unit_price=2)
    chunk = start_next(engine)
    write(engine, hand_back_chunk, chunk.fence, [accepted(1)])
    started = start(engine, *queue_ready(engine, 2)[:1])
    assert started is not None
    with transaction(engine) as session:
        assert cancel_job(session, job.id)
        assert not cancel_job(session, job.id)
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id, limit=2) == 2
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id, limit=2) == 1
        assert drain_cancelled(session, job.id, limit=2) == 0
        assert renew_lease(session, started.fence, LEASE_SECONDS).cancelled
    outcomes = [refused(place, Reason.CANCELLED) for place in positions(started)]
    write(engine, settle_chunk, started.fence, outcomes)
    row = read_job(engine, job.id)
    assert (row["completed_chunks"], row["failures"]) == (4, {"cancelled": 11})
    assert balance_of(engine, job) == 1000 - 2
    check_books(engine)


def test_chunks_with_outcomes_are_drained_a_few_at_a_time(engine, monkeypatch):
    """Each of their candidates gets a row of its own, and a batch has a bounded number of those."""
    job = new_job(engine, [3] * 3)
    for chunk in [start_next(engine) for _ in range(3)]:
        write(engine, hand_back_chunk, chunk.fence, [refused(positions(chunk)[0])])
    monkeypatch.setattr(ending, "UNRESOLVED_MAX", 3)
    with transaction(engine) as session:
        assert cancel_job(session, job.id)
        assert [drain_cancelled(session, job.id) for _ in range(4)] == [1, 1, 1, 0]
    check_books(engine)


def test_pausing_takes_chunks_out_of_the_queue(engine):
    """Queued chunks go back with their holds released; chunks in flight finish; resuming holds anew."""
    job = new_job(engine, [2, 2])
    running, [waiting] = start_next(engine), queue_ready(engine, 1)
    with transaction(engine) as session:
        assert pause_job(session, job.id)
        assert drain_paused(session, job.id) == 1
    assert balance_of(engine, job) == 998
    assert queue_ready(engine) == []
    write(engine, settle_chunk, running.fence, [refused(0), refused(1)])
    with transaction(engine) as session:
        assert resume_job(session, job.id)
    assert start(engine, waiting) is None
    assert positions(start_next(engine)) == [2, 3]
    check_books(engine)


def test_a_paused_job_holds_nothing_for_what_came_back(engine):
    """A chunk that was handed back, parked or rescued while its job was paused loses its hold and goes on later."""
    job = new_job(engine, [3, 3, 3])
    handed, parked, lost = (start_next(engine, f"{number}@test") for number in range(3))
    with transaction(engine) as session:
        assert pause_job(session, job.id)
    write(engine, hand_back_chunk, handed.fence, [accepted(0)])
    with transaction(engine) as session:
        hand_back_chunk(session, parked.fence, [], available_in_seconds=60)
    expire_lease(engine, lost.fence.chunk_id)
    with transaction(engine) as session:
        assert rescue_chunk(session, 5) is not None
        assert drain_paused(session, job.id, limit=2) == 2
        assert drain_paused(session, job.id, limit=2) == 1
        assert drain_paused(session, job.id) == 0
    assert balance_of(engine, job) == 1000 - 1
    assert read_chunk(engine, parked.fence.chunk_id)["available_at"] is not None
    with transaction(engine) as session:
        assert resume_job(session, job.id)
    assert [positions(start_next(engine)) for _ in range(2)] == [[1, 2], [6, 7, 8]]
    check_books(engine)


def rescue(session: Session, _job_id: int) -> int:
    """How many chunks are rescued."""
    return sum(rescue_chunk(session, 5) is not None for _ in range(2))


def publish(session: Session, _job_id: int) -> int:
    """How many messages are sent again."""
    return len(publish_again(session, -1))


@pytest.mark.parametrize("arrow", [rescue, publish, drain_cancelled, drain_paused])
def test_a_chunk_that_another_process_has_locked_is_passed_over(engine, arrow):
    """The scheduler takes the other one, and waits for nobody."""
    job = new_job(engine, [1, 1])
    first, second = queue_ready(engine)
    if arrow is rescue:
        for message in (first, second):
            assert start(engine, message) is not None
            expire_lease(engine, message.chunk_id)
    elif arrow is not publish:
        with transaction(engine) as session:
            assert (cancel_job if arrow is drain_cancelled else pause_job)(session, job.id)
    with transaction(engine) as other, transaction(engine) as session:
        other.execute(text("SELECT FROM job_chunks WHERE id = :id FOR UPDATE"), {"id": first.chunk_id})
        session.execute(text("SET LOCAL lock_timeout = '100ms'"))
        assert arrow(session, job.id) == 1


def test_concurrent_writers_count_exactly(engine):
    """Eight workers that write at once lose no image, byte or credit of their user's day."""
    job = new_job(engine, [20] * 8)
    chunks = [start_next(engine, f"{number}@test") for number in range(8)]

    def work(chunk: StartedChunk) -> None:
        fence = chunk.fence
        for place in positions(chunk):
            assert write(engine, checkpoint, fence, [accepted(place)]) is not None
            fence = moved_on(fence)
        assert write(engine, settle_chunk, fence, []) is not None

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, chunks))
    check_books(engine)
    [metrics] = query(
        engine, "SELECT images_processed, storage_used_bytes, bandwidth_used_bytes FROM usage_metrics"
    )
    assert metrics == (160, 16_000, 24_000)
    assert balance_of(engine, job) == 1000 - 160


@pytest.fixture
def executioner(database_url: str) -> Iterator[Callable[[Any], None]]:
    """Terminates the backend of a pooled connection, and returns once it is gone."""
    other = create_engine(database_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def terminate(connection: Any) -> None:
        pid = connection.dbapi_connection.info.backend_pid
        with other.connect() as administrator:
            ended = administrator.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            assert ended.scalar_one()

    yield terminate
    other.dispose()


@contextmanager
def at_commit(engine: Engine, do: Callable[[Any], None]) -> Iterator[None]:
    """Run ``do`` with the pooled connection in the place of the first COMMIT."""
    original = engine.dialect.do_commit
    calls = 0

    def do_commit(connection: Any) -> None:
        nonlocal calls
        calls += 1
        (do if calls == 1 else original)(connection)

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.dialect.do_commit = original  # type: ignore[method-assign]
    assert calls


def settled_once(engine: Engine, chunk: StartedChunk, before: Callable[[], Any]) -> None:
    """Settle through ``commit`` while ``before`` goes wrong; written exactly once in the end."""
    places = positions(chunk)
    outcomes: list[Outcome] = [accepted(place) for place in places[:-1]]
    outcomes.append(refused(places[-1]))
    with before():
        commit(engine, chunk.fence, lambda session: settle_chunk(session, chunk.fence, outcomes))
    row = read_chunk(engine, chunk.fence.chunk_id)
    assert (row["status"], row["checkpoint"], row["accepted"], row["failed"]) == (
        "completed",
        1,
        len(places) - 1,
        1,
    )
    check_books(engine)


def test_a_connection_cut_before_its_commit_writes_once(engine, executioner):
    """The backend dies before COMMIT arrives: nothing was written, and the second try writes."""
    new_job(engine)
    chunk = start_next(engine)

    def cut(connection: Any) -> None:
        executioner(connection)
        connection.commit()

    settled_once(engine, chunk, partial(at_commit, engine, cut))


def test_a_connection_cut_after_its_commit_writes_once(engine, executioner):
    """COMMIT succeeds and its answer is lost: the fence shows that it is written, and nothing is repeated."""
    new_job(engine)
    chunk = start_next(engine)

    def cut(connection: Any) -> None:
        connection.commit()
        executioner(connection)
        connection.cursor().execute("SELECT 1")

    settled_once(engine, chunk, partial(at_commit, engine, cut))


def test_a_start_cut_after_its_commit_is_ours(engine, executioner):
    """The worker whose start went through unseen goes on with the chunk."""
    new_job(engine, [2])
    [message] = queue_ready(engine)

    def cut(connection: Any) -> None:
        connection.commit()
        executioner(connection)
        connection.cursor().execute("SELECT 1")

    with at_commit(engine, cut):
        chunk = writing.start(engine, message.chunk_id, message.attempt, "worker@test", LEASE_SECONDS)
    assert positions(chunk) == [0, 1]
    assert read_job(engine, message.job_id)["active_chunks"] == 1


def test_a_connection_cut_at_any_statement_writes_once(engine, executioner, monkeypatch):
    """Wherever in the settlement the backend dies, the chunk ends once, with its images and its charge."""
    monkeypatch.setattr(writing, "BACKOFF_SECONDS_MAX", 0.01)
    cuts = [""]
    while cuts[-1] is not None:
        new_job(engine, [3])
        settled_once(engine, start_next(engine), partial(cut_at_statement, engine, cuts, executioner))
    assert len(cuts) > 7
    assert "usage_metrics" in str(cuts[-2])


@contextmanager
def cut_at_statement(
    engine: Engine, cuts: list[str | None], terminate: Callable[[Any], None]
) -> Iterator[None]:
    """Terminate the backend right before one statement, one later each time; add it to ``cuts``, or None when there
    were not so many.
    """
    number = len(cuts)
    statements: list[str] = []

    def look(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)
        if len(statements) == number:
            terminate(connection.connection)

    event.listen(engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", look)
    cuts.append(statements[number - 1] if number <= len(statements) else None)


def test_somebody_elses_chunk_is_said_to_be_lost(engine):
    """A write without its fence raises, and leaves nothing behind."""
    new_job(engine, [1])
    chunk = start_next(engine)
    foreign = replace(chunk.fence, worker="another@test")
    with pytest.raises(LostChunkError, match="has another owner"):
        commit(engine, foreign, lambda session: settle_chunk(session, foreign, [accepted(0)]))
    assert query(engine, "SELECT count(*) FROM images") == [(0,)]
