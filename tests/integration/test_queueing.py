"""Which chunk runs next, on real PostgreSQL: urgency, age, fairness between users, and one claim for each chunk."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from models.database import transaction
from models.job_lifecycle import block_job, cancel_job, pause_job
from models.jobs import BlockedReason
from models.queueing import (
    ROOM,
    claim_chunks,
    lock_jobs,
    publish_again,
    queue_chunks,
    queued_chunks,
    room_in_flight,
)
from tests.support.crawling import (
    NewJob,
    change,
    new_job,
    queue_ready,
    read_chunk,
    refused,
    settle_run,
    start,
)


def claim(engine: Engine, limit: int = 100) -> list[int]:
    """Ids of the chunks that would run next; nothing stays claimed."""
    with transaction(engine) as session:
        return [chunk.id for chunk in claim_chunks(session, limit)]


def jobs_of(engine: Engine, limit: int, jobs: Sequence[NewJob]) -> list[int]:
    """Which of ``jobs`` the next chunks belong to."""
    owners = {chunk_id: number for number, job in enumerate(jobs) for chunk_id in job.chunk_ids}
    return [owners[chunk_id] for chunk_id in claim(engine, limit)]


def test_the_most_urgent_job_comes_first(engine):
    """Priority decides before age, and within a job the chunks go in their order."""
    low, high, middle = (new_job(engine, [5, 5], priority=priority) for priority in (1, 9, 5))
    assert claim(engine) == [*high.chunk_ids, *middle.chunk_ids, *low.chunk_ids]
    assert claim(engine, 3) == [*high.chunk_ids, middle.chunk_ids[0]]


def test_a_job_that_waits_grows_more_urgent(engine):
    """Every ten minutes in which nothing of a job was dispatched raise it by one, up to the highest priority."""
    old, young = new_job(engine, [5], priority=3), new_job(engine, [5], priority=5)
    age = "UPDATE crawl_jobs SET {} = now() - make_interval(mins => :minutes) WHERE id = :id"
    change(engine, age.format("created_at"), minutes=19, id=old.id)
    assert jobs_of(engine, 2, [old, young]) == [1, 0]
    change(engine, age.format("created_at"), minutes=31, id=old.id)
    assert jobs_of(engine, 2, [old, young]) == [0, 1]
    change(engine, age.format("dispatched_at"), minutes=0, id=old.id)
    assert jobs_of(engine, 2, [old, young]) == [1, 0]
    change(engine, age.format("dispatched_at"), minutes=31, id=old.id)
    assert jobs_of(engine, 2, [old, young]) == [0, 1]

    urgent = new_job(engine, [5], priority=10)
    change(engine, age.format("dispatched_at"), minutes=100_000, id=old.id)
    change(engine, age.format("created_at"), minutes=200_000, id=urgent.id)
    assert jobs_of(engine, 3, [old, young, urgent]) == [2, 0, 1]


def test_equal_users_take_turns(engine):
    """With equal priority two users alternate, however many jobs and chunks each has."""
    first = new_job(engine, [5] * 4)
    second = new_job(engine, [5] * 4, owner=first)
    other = new_job(engine, [5] * 8)
    assert jobs_of(engine, 6, [first, second, other]) == [0, 2, 0, 2, 0, 2]


def test_a_user_with_chunks_in_flight_waits_for_the_other(engine):
    """What a user has in flight counts: the other one catches up first."""
    busy = new_job(engine, [5] * 5)
    queue_ready(engine, 2)
    other = new_job(engine, [5] * 5)
    assert jobs_of(engine, 6, [busy, other]) == [1, 1, 0, 1, 0, 1]
    with transaction(engine) as session:
        assert -room_in_flight(session, 2) == queued_chunks(session) == 2


def test_chunks_that_no_worker_of_ours_has_are_not_in_flight(engine):
    """A chunk that another service runs is not counted, and one without candidates is not ready."""
    job = new_job(engine, [5] * 3)
    foreign, empty, ready = job.chunk_ids
    another = "status = 'processing', lease_until = 'infinity', worker = 'another service'"
    change(engine, f"UPDATE job_chunks SET {another} WHERE id = :id", id=foreign)
    change(engine, "UPDATE job_chunks SET candidates = NULL WHERE id = :id", id=empty)
    with transaction(engine) as session:
        assert -room_in_flight(session, 2) == queued_chunks(session) == 0
    assert claim(engine) == [ready]


def test_chunks_in_flight_are_counted_from_their_index(engine):
    """The condition implies the partial index's, so that the whole table need not be read."""
    with transaction(engine) as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        parameters = {"chunks_per_slot": 2, "seconds": 15}
        plan = "\n".join(session.execute(text(f"EXPLAIN {ROOM.text}"), parameters).scalars())
    assert "ix_job_chunks_live" in plan


def test_between_equals_the_older_job_comes_first(engine):
    """Age decides last."""
    younger, older = new_job(engine, [5]), new_job(engine, [5])
    change(engine, "UPDATE crawl_jobs SET created_at = now() - interval '1 min' WHERE id = :id", id=older.id)
    assert jobs_of(engine, 2, [younger, older]) == [1, 0]


def test_only_ready_chunks_of_running_jobs_are_claimed(engine):
    """Parked, queued, started and ended chunks are left out, and those of stopped, blocked and ended jobs."""
    job = new_job(engine, [5] * 5)
    parked, _queued, started, ended, ready = job.chunk_ids
    change(
        engine,
        """UPDATE job_chunks SET available_at = CASE id WHEN :parked THEN now() + interval '1 min' END,
        queued_at = CASE WHEN id NOT IN (:parked, :ready) THEN now() END""",
        parked=parked,
        ready=ready,
    )
    processing = "status = 'processing', queued_at = NULL, lease_until = now(), worker = 'w'"
    change(engine, f"UPDATE job_chunks SET {processing} WHERE id = :id", id=started)
    change(
        engine,
        "UPDATE job_chunks SET status = 'completed', failed = size, queued_at = NULL WHERE id = :id",
        id=ended,
    )
    others = [new_job(engine) for _ in range(4)]
    with transaction(engine) as session:
        pause_job(session, others[0].id)
        cancel_job(session, others[1].id)
        block_job(session, others[2].id, BlockedReason.OUT_OF_CREDITS)
    change(
        engine,
        "UPDATE crawl_jobs SET status = 'failed', completed_at = now() WHERE id = :id",
        id=others[3].id,
    )
    assert claim(engine) == [ready]
    change(engine, "UPDATE job_chunks SET available_at = now() WHERE id = :id", id=parked)
    assert claim(engine) == [parked, ready]


def test_two_claimers_never_get_the_same_chunk(engine):
    """Whatever one transaction has claimed is skipped by the other, without waiting for it."""
    job = new_job(engine, [5] * 12)
    both_claimed = threading.Barrier(2)

    def claim_and_hold(_: int) -> list[int]:
        with transaction(engine) as session:
            claimed = [chunk.id for chunk in claim_chunks(session, 6)]
            both_claimed.wait(10)
            return claimed

    with ThreadPoolExecutor(2) as threads:
        claims = list(threads.map(claim_and_hold, range(2)))
    found = [chunk_id for claimed in claims for chunk_id in claimed]
    assert len(found) == len(set(found)) >= 6
    assert set(found) <= set(job.chunk_ids)


def test_a_queued_chunk_has_a_new_attempt_and_its_task(engine):
    """Each dispatch is one attempt more, named in the message, in the row, and for Celery."""
    new_job(engine, [5], priority=7)
    [message] = queue_ready(engine)
    assert (message.attempt, message.priority) == (1, 7)
    assert queue_ready(engine) == []
    assert read_chunk(engine, message.chunk_id)["task_id"] == f"chunk-{message.chunk_id}.1"
    change(engine, "UPDATE job_chunks SET queued_at = NULL")
    [second] = queue_ready(engine)
    assert second.attempt == 2
    assert read_chunk(engine, message.chunk_id)["task_id"] == f"chunk-{message.chunk_id}.2"


@pytest.mark.parametrize("stop", [pause_job, cancel_job])
def test_a_job_that_is_stopped_while_its_chunk_is_claimed_stays_so(engine, stop):
    """Whoever comes before the job is locked is heard; whoever comes after waits until its chunk is queued."""
    job = new_job(engine, [5] * 2)
    with transaction(engine) as session:
        claimed = claim_chunks(session, 2)
        with transaction(engine) as user:
            assert stop(user, job.id)
        assert (len(claimed), lock_jobs(session, claimed)) == (2, [])


def test_only_what_waits_is_queued(engine):
    """A chunk that is queued already, one that a worker has and one that has ended stay as they are."""
    job = new_job(engine, [1] * 4)
    _queued, taken, ended = queue_ready(engine, 3)
    assert start(engine, taken) is not None
    chunk = start(engine, ended)
    assert chunk is not None
    assert settle_run(engine, chunk, [refused(2)]) is not None
    before = [read_chunk(engine, chunk_id) for chunk_id in job.chunk_ids[:3]]
    with transaction(engine) as session:
        assert [message.chunk_id for message in queue_chunks(session, job.chunk_ids)] == job.chunk_ids[3:]
    assert [read_chunk(engine, chunk_id) for chunk_id in job.chunk_ids[:3]] == before


@pytest.mark.parametrize(("queued_seconds", "again"), [(4, False), (6, True)])
def test_a_message_that_nobody_took_is_published_again(engine, queued_seconds, again):
    """The same attempt is sent once more after the time given, and then not before that time has passed again."""
    new_job(engine, [5] * 2)
    message, started = queue_ready(engine)
    assert start(engine, started) is not None
    change(
        engine,
        "UPDATE job_chunks SET queued_at = queued_at - make_interval(secs => :seconds)",
        seconds=queued_seconds,
    )
    with transaction(engine) as session:
        assert publish_again(session, 5) == ([message] if again else [])
    with transaction(engine) as session:
        assert publish_again(session, 5) == []
