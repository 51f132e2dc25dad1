"""Trying failures again, on real PostgreSQL: which come back, what they may cost, and who else is at the job."""

import datetime
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from models import retrying
from models.database import transaction
from models.ending import drain_cancelled, rescue_chunk
from models.job_lifecycle import cancel_job, close_job
from models.jobs import SourceState
from models.lifecycle import checkpoint_chunk, hand_back_chunk, start_chunk
from models.opt_outs import Declaration, Evidence
from models.outcomes import Outcome, Reason
from models.reopening import RetryError, lock_job, rewind_source
from models.retrying import (
    ALL_FAILURES,
    TRANSIENT_FAILURES,
    Retried,
    Selection,
    retry_chunks,
)
from models.splitting import NewChunk, abandon_source, advance_source, satisfy_source, splittable_jobs
from models.sweeping import forget_inputs
from scheduler.dispatch import queue_next
from scheduler.retry import Retry, retry
from tests.support.crawling import (
    LEASE_SECONDS,
    NewJob,
    accepted,
    balance_of,
    candidates,
    change,
    check_books,
    expire_lease,
    new_job,
    query,
    read_chunk,
    read_job,
    refused,
    settle_run,
    start_next,
    wait_for_blocked,
)
from worker.store import open_store


def only(*reasons: Reason, chunks: Sequence[int] | None = None) -> Selection:
    """These reasons, of these chunks."""
    return Selection(frozenset(reasons), chunk_ids=None if chunks is None else frozenset(chunks))


def again(engine: Engine, job: NewJob, selection: Selection = ALL_FAILURES, **options: Any) -> Retried:
    """Commit one batch."""
    with transaction(engine) as session:
        return retry_chunks(session, job.id, selection, **options)


def end_next(engine: Engine, outcomes: Sequence[Outcome]) -> int:
    """Let a worker end the next chunk so; its id."""
    chunk = start_next(engine)
    assert settle_run(engine, chunk, outcomes) is not None
    return chunk.fence.chunk_id


def close(engine: Engine) -> int | None:
    """End a job that has nothing left to do."""
    with transaction(engine) as session:
        return close_job(session)


def positions(engine: Engine) -> list[int]:
    """Where the candidates stand that the next worker gets."""
    return [candidate.position for candidate in start_next(engine).candidates]


def test_what_may_pass_by_itself_is_tried_again(engine):
    """An ended job runs anew with its transient failures, statuses like 503 among them; it ends and is told again,
    and only new images are charged.
    """
    job = new_job(engine, [4, 2], unit_price=2)
    outcomes = [
        accepted(0),
        refused(1, Reason.TIMEOUT),
        refused(2, http_status=503),
        refused(3, http_status=404),
    ]
    end_next(engine, outcomes)
    end_next(engine, [accepted(4), refused(5, Reason.CORRUPT)])
    assert close(engine) == job.id
    before = read_job(engine, job.id)
    assert (before["progress"], balance_of(engine, job)) == (100, 1000 - 4)

    assert again(engine, job, TRANSIENT_FAILURES).reasons == {"timeout": 1, "http_status": 1}
    check_books(engine)
    row = read_job(engine, job.id)
    assert (row["status"], row["completed_at"], row["progress"]) == ("running", None, 66)
    assert (row["completed_chunks"], row["failures"]) == (1, {"corrupt": 1, "http_status": 1})
    assert row["started_at"] == before["started_at"]
    assert query(engine, "SELECT count(*) FROM credit_transactions WHERE status = 'pending'") == [(0,)]
    assert close(engine) is None

    chunk = start_next(engine)
    assert [candidate.position for candidate in chunk.candidates] == [1, 2]
    assert (chunk.fence.attempt, balance_of(engine, job)) == (2, 1000 - 4 - 4)
    settle_run(engine, chunk, [accepted(1), refused(2, Reason.DNS)])
    assert close(engine) == job.id
    row = read_job(engine, job.id)
    assert (row["status"], row["progress"], row["valid_images"]) == ("completed", 100, 3)
    assert balance_of(engine, job) == 1000 - 6
    assert query(engine, "SELECT count(*) FROM notifications WHERE category = 'crawl_job'") == [(2,)]
    check_books(engine)


def test_a_robots_txt_that_could_not_be_read_may_pass_by_itself(engine):
    """What a line of it disallows does not, and its evidence stays; the evidence of what is tried again goes."""
    job = new_job(engine, [3])
    at = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    said = Evidence(Declaration.ROBOTS_TXT, "http://o.test/robots.txt", at, "Disallow: /\x00\udc80", 2, "*")
    unreachable = replace(said, line=None, line_number=None, unreachable="the server answered 503")
    evidence = [said, unreachable, None]
    end_next(engine, [refused(place, Reason.ROBOTS, evidence=each) for place, each in enumerate(evidence)])
    close(engine)
    assert again(engine, job, TRANSIENT_FAILURES).reasons == {"robots": 1}
    assert query(engine, "SELECT position, evidence FROM failures ORDER BY 1") == [
        (0, said.document | {"line": "Disallow: /\ufffd?"}),
        (2, None),
    ]
    assert TRANSIENT_FAILURES.possible({"robots": 3, "opt_out": 2, "dns": 1}) == 4
    check_books(engine)


def test_only_what_was_chosen_comes_back(engine):
    """Reasons and chunks choose; images, duplicates and what is not needed never come back."""
    job = new_job(engine, [4, 3])
    first = end_next(
        engine, [accepted(0, "a"), accepted(1, "a"), refused(2, Reason.DNS), refused(3, Reason.TLS)]
    )
    second = end_next(engine, [refused(4, Reason.TLS), refused(5, Reason.NOT_NEEDED), refused(6, Reason.DNS)])
    assert again(engine, job, only(Reason.TIMEOUT, Reason.DUPLICATE, Reason.NOT_NEEDED)).reasons == {}
    assert read_chunk(engine, first)["status"] == "completed"
    assert again(engine, job, only(Reason.TLS, Reason.DNS, chunks=[second])).reasons == {"tls": 1, "dns": 1}
    assert [read_chunk(engine, chunk)["status"] for chunk in (first, second)] == ["completed", "pending"]
    check_books(engine)
    assert positions(engine) == [4, 6]
    assert again(engine, job).reasons == {"dns": 1, "tls": 1}
    assert read_job(engine, job.id)["failures"] == {"duplicate": 1, "not_needed": 1}
    assert positions(engine) == [2, 3]
    check_books(engine)


def test_a_failed_chunk_is_tried_again(engine):
    """What too many lost workers left comes back, with no loss counted any more, and the job does not fail."""
    job = new_job(engine, [5])
    chunk = start_next(engine)
    with transaction(engine) as session:
        checkpoint_chunk(session, chunk.fence, [accepted(1), refused(3, Reason.DNS)], LEASE_SECONDS)
    change(engine, "UPDATE job_chunks SET retry_count = 2")
    expire_lease(engine, chunk.fence.chunk_id)
    with transaction(engine) as session:
        assert rescue_chunk(session, 2) is not None
    assert close(engine) == job.id
    assert read_job(engine, job.id)["status"] == "failed"
    assert again(engine, job, TRANSIENT_FAILURES).reasons == {"dns": 1}
    row = read_chunk(engine, chunk.fence.chunk_id)
    assert (row["status"], row["retry_count"], row["error_message"]) == ("pending", 0, None)
    end_next(engine, [accepted(3)])
    assert again(engine, job).reasons == {"worker_lost": 3}
    assert positions(engine) == [0, 2, 4]
    assert read_job(engine, job.id)["failed_chunks"] == 0
    check_books(engine)


def test_a_job_that_ended_long_ago_is_as_urgent_as_a_new_one(engine):
    """Ageing begins anew when a job is reopened, and goes on when it still ran."""
    job = new_job(engine, [1, 1])
    end_next(engine, [refused(0)])
    long_ago = "UPDATE crawl_jobs SET dispatched_at = now() - interval '1 day'"
    recent = "SELECT dispatched_at > now() - interval '1 hour' FROM crawl_jobs"
    change(engine, long_ago)
    assert again(engine, job).chunks == 1
    assert query(engine, recent) == [(False,)]
    end_next(engine, [refused(0)])
    end_next(engine, [refused(1)])
    assert close(engine) == job.id
    change(engine, long_ago)
    assert again(engine, job).chunks == 2
    assert query(engine, recent) == [(True,)]


def cancelled_job(engine: Engine, store_url: str, lines: int, **columns: Any) -> NewJob:
    """A cancelled job of ``lines`` candidates: an ended chunk of 3, an untouched one of 4, and the rest in none."""
    open_store(store_url).put("inputs/list.txt", b"".join(b"http://a/%d\n" % line for line in range(lines)))
    source = {"object": "inputs/list.txt", "files": [{"name": "l", "bytes": 1, "candidates": lines}]}
    job = new_job(engine, [3, 4], source=source, source_state=SourceState.SPLITTING, **columns)
    change(engine, "UPDATE crawl_jobs SET total_images = :lines, source_step = 1", lines=lines)
    end_next(engine, [accepted(0), refused(1, Reason.DNS), refused(2, Reason.TLS)])
    with transaction(engine) as session:
        cancel_job(session, job.id)
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id) == 1
        assert abandon_source(session) == job.id
    assert close(engine) == job.id
    assert read_job(engine, job.id)["status"] == "cancelled"
    check_books(engine)
    return job


def test_a_cancelled_job_goes_on_where_it_was(engine, tmp_path):
    """Its candidates come back, and those that were in no chunk are handed out from where the source stood."""
    url = tmp_path.as_uri()
    job = cancelled_job(engine, url, 50, unit_price=3)
    done = retry(engine, url, job.id, ALL_FAILURES)
    assert done.report() == {
        "job": job.id,
        "candidates": 49,
        "chunks": 2,
        "reasons": {"cancelled": 47, "dns": 1, "tls": 1},
        "credits_max": 49 * 3,
        "left_out": False,
        "pages": 0,
    }
    check_books(engine)
    row = read_job(engine, job.id)
    assert (row["status"], row["cancelled_at"], row["source_state"]) == ("running", None, "splitting")
    assert (row["source_position"], row["source_step"], row["failures"]) == (7, 2, {})
    with transaction(engine) as session:
        [wanting] = splittable_jobs(session)
        assert advance_source(
            session, wanting, {}, SourceState.EXHAUSTED, [NewChunk(2, 7, candidates(7, 43))]
        )
    assert [positions(engine) for _ in range(3)] == [[1, 2], [3, 4, 5, 6], list(range(7, 50))]
    check_books(engine)


@pytest.mark.parametrize("ended", [False, True])
def test_what_was_in_no_chunk_comes_back_after_another_retry(engine, tmp_path, ended):
    """A cancelled job of which only a part was tried again still runs then, or has completed."""
    url = tmp_path.as_uri()
    job = cancelled_job(engine, url, 50)
    assert retry(engine, url, job.id, only(Reason.DNS)).candidates == 1
    if ended:
        end_next(engine, [accepted(1)])
        assert close(engine) == job.id
        assert read_job(engine, job.id)["status"] == "completed"
    done = retry(engine, url, job.id, ALL_FAILURES)
    assert (done.unchunked, done.reasons["cancelled"]) == (43, 47)
    row = read_job(engine, job.id)
    assert (row["status"], row["source_state"], row["source_position"]) == ("running", "splitting", 7)
    check_books(engine)


def test_what_is_not_needed_is_not_handed_out_again(engine, tmp_path):
    """A source that was left because enough was accepted stays so."""
    job = new_job(engine, [2], max_images=1, source_state=SourceState.OPEN)
    change(engine, "UPDATE crawl_jobs SET total_images = 9")
    end_next(engine, [accepted(0), refused(1, Reason.CORRUPT)])
    with transaction(engine) as session:
        assert satisfy_source(session) == job.id
    assert close(engine) == job.id
    assert retry(engine, tmp_path.as_uri(), job.id, ALL_FAILURES).candidates == 0
    assert read_job(engine, job.id)["status"] == "completed"
    check_books(engine)


def test_a_source_that_was_read_to_its_end_is_not_rewound(engine, tmp_path):
    """What was cancelled stands in chunks then, and comes back in them."""
    job = new_job(engine, [2, 3])
    with transaction(engine) as session:
        cancel_job(session, job.id)
        assert drain_cancelled(session, job.id) == 2
    assert close(engine) == job.id
    done = retry(engine, tmp_path.as_uri(), job.id, ALL_FAILURES)
    assert (done.candidates, done.unchunked, done.chunks) == (5, 0, 2)
    assert read_job(engine, job.id)["source_state"] == "exhausted"
    check_books(engine)


@pytest.mark.parametrize("swept", [False, True])
def test_a_cancelled_job_without_its_input_stays_as_it_is(engine, tmp_path, swept):
    """One sentence, and nothing changed; what needs no input can still be tried again."""
    url = tmp_path.as_uri()
    job = cancelled_job(engine, url, 50)
    if swept:
        change(engine, "UPDATE crawl_jobs SET source = source - 'object'")
    else:
        open_store(url).delete(["inputs/list.txt"])
    with pytest.raises(RetryError, match=r"copy of the input of job \d+ is gone"):
        retry(engine, url, job.id, ALL_FAILURES)
    assert read_job(engine, job.id)["status"] == "cancelled"
    done = retry(engine, url, job.id, Selection(frozenset(Reason), chunk_ids=frozenset(job.chunk_ids)))
    assert (done.candidates, done.unchunked) == (6, 0)
    assert read_job(engine, job.id)["failures"] == {"cancelled": 43}
    check_books(engine)


def test_an_input_that_is_swept_before_the_source_is_rewound(engine, tmp_path):
    """Between the look at the input and the rewind it may go: the job does not wait for it for ever."""
    job = cancelled_job(engine, tmp_path.as_uri(), 50)
    change(engine, "UPDATE crawl_jobs SET completed_at = now() - interval '1 year'")
    with transaction(engine) as session:
        assert forget_inputs(session, ["inputs/list.txt"], 60) == {"inputs/list.txt"}
    with transaction(engine) as session:
        assert rewind_source(session, lock_job(session, job.id)) == 0
    assert read_job(engine, job.id)["status"] == "cancelled"
    check_books(engine)


def test_two_retries_at_once_rewind_a_source_once(engine, tmp_path):
    """The second waits for the first, and finds nothing that was not handed out."""
    job = cancelled_job(engine, tmp_path.as_uri(), 50)

    def rewind() -> int:
        with transaction(engine) as session:
            return rewind_source(session, lock_job(session, job.id))

    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            assert rewind_source(session, lock_job(session, job.id)) == 43
            second = thread.submit(rewind)
            wait_for_blocked(engine)
        assert second.result(10) == 0
    assert (read_job(engine, job.id)["source_step"], read_job(engine, job.id)["source_position"]) == (2, 7)
    check_books(engine)


def test_a_parked_chunk_of_a_cancelled_job_is_ready_when_it_is_tried_again(engine):
    """What it waited for is forgotten with its end."""
    job = new_job(engine, [2])
    chunk = start_next(engine)
    with transaction(engine) as session:
        hand_back_chunk(session, chunk.fence, [], available_in_seconds=60)
        cancel_job(session, job.id)
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id) == 1
    assert close(engine) == job.id
    assert again(engine, job).reasons == {"cancelled": 2}
    assert positions(engine) == [0, 1]


def test_no_more_come_back_than_max_images_allows(engine):
    """Accepted and unresolved candidates together never exceed it; of a range the rest stays."""
    job = new_job(engine, [4, 6], max_images=10)
    end_next(engine, [accepted(0), accepted(1), accepted(2), refused(3, Reason.DNS)])
    with transaction(engine) as session:
        cancel_job(session, job.id)
    with transaction(engine) as session:
        drain_cancelled(session, job.id)
    assert close(engine) == job.id
    change(engine, "UPDATE crawl_jobs SET max_images = 5")
    batch = again(engine, job)
    assert (batch.reasons, batch.full) == ({"dns": 1, "cancelled": 1}, True)
    check_books(engine)
    assert query(engine, "SELECT position, position_end FROM failures") == [(5, 9)]
    assert again(engine, job).reasons == {}
    assert [positions(engine), positions(engine)] == [[3], [4]]
    check_books(engine)


@pytest.mark.parametrize("end", ["cancelled", "worker_lost"])
def test_what_is_left_of_a_range_keeps_its_one_outcome(engine, end):
    """A chunk of whose range only the beginning was tried again ends without a second outcome for the rest."""
    job = new_job(engine, [6], max_images=10)
    with transaction(engine) as session:
        cancel_job(session, job.id)
        assert drain_cancelled(session, job.id) == 1
    assert close(engine) == job.id
    change(engine, "UPDATE crawl_jobs SET max_images = 2")
    assert again(engine, job).reasons == {"cancelled": 2}
    if end == "cancelled":
        with transaction(engine) as session:
            cancel_job(session, job.id)
            assert drain_cancelled(session, job.id) == 1
    else:
        expire_lease(engine, start_next(engine).fence.chunk_id)
        with transaction(engine) as session:
            assert rescue_chunk(session, 0) is not None
    assert query(engine, "SELECT position, position_end, reason FROM failures ORDER BY 1") == [
        (0, 0, end),
        (1, 1, end),
        (2, 5, "cancelled"),
    ]
    check_books(engine)


def test_whoever_waited_longest_is_tried_first(engine, tmp_path):
    """With room for two at a time, candidates that failed again do not keep the others from their turn."""
    job = new_job(engine, [3, 3], max_images=6)
    for start in (0, 3):
        end_next(engine, [refused(place, Reason.DNS) for place in range(start, start + 3)])
    change(engine, "UPDATE crawl_jobs SET max_images = 2")
    change(engine, "UPDATE failures SET at = now() - make_interval(mins => 1 + position / 3)")
    tried = []
    for _ in range(3):
        done = retry(engine, tmp_path.as_uri(), job.id, ALL_FAILURES)
        assert (done.candidates, done.left_out) == (2, True)
        while query(engine, "SELECT FROM job_chunks WHERE status = 'pending'"):
            chunk = start_next(engine)
            places = [candidate.position for candidate in chunk.candidates]
            tried += places
            settle_run(engine, chunk, [refused(place, Reason.DNS) for place in places])
        check_books(engine)
    assert tried == [3, 4, 0, 1, 2, 5]


def test_a_step_of_the_source_that_was_read_before_a_retry_is_not_written(engine):
    """It would hand out candidates in the place of those that came back."""
    job = new_job(engine, [5], max_images=5, source_state=SourceState.OPEN)
    change(engine, "UPDATE crawl_jobs SET total_images = 100")
    end_next(engine, [refused(place, Reason.DNS) for place in range(5)])
    with transaction(engine) as session:
        [wanting] = splittable_jobs(session)
    assert wanting.wanted == 5
    assert again(engine, job).reasons == {"dns": 5}
    chunk = NewChunk(1, 5, candidates(5, 5))
    with transaction(engine) as session:
        assert not advance_source(session, wanting, {}, SourceState.OPEN, [chunk])
        assert advance_source(session, wanting, {}, SourceState.OPEN, [])
    check_books(engine)


def test_a_batch_is_bounded(engine, monkeypatch):
    """By chunks, and by the candidates that they have without an image; the next one goes on behind it."""
    job = new_job(engine, [2] * 6, max_images=1000)
    for _ in range(6):
        chunk = start_next(engine)
        settle_run(engine, chunk, [refused(candidate.position) for candidate in chunk.candidates])
    monkeypatch.setattr(retrying, "CHUNKS_MAX", 2)
    first = again(engine, job)
    assert (first.chunks, first.after) == (2, 1)
    monkeypatch.setattr(retrying, "CHUNKS_MAX", 50)
    monkeypatch.setattr(retrying, "CANDIDATES_MAX", 7)
    second = again(engine, job, after=1)
    assert (second.chunks, second.after) == (3, 4)
    monkeypatch.setattr(retrying, "CANDIDATES_MAX", 1)
    assert [again(engine, job, after=after).after for after in (4, 5)] == [5, None]
    check_books(engine)


def test_a_batch_is_of_chunks_with_something_to_try(engine, monkeypatch):
    """Those without a failure take no place in it; one whose candidates are not here could never run again."""
    monkeypatch.setattr(retrying, "CHUNKS_MAX", 1)
    job = new_job(engine, [1] * 3)
    for outcome in (accepted(0), refused(1), refused(2)):
        end_next(engine, [outcome])
    change(engine, "UPDATE job_chunks SET candidates = NULL WHERE id = :id", id=job.chunk_ids[1])
    assert again(engine, job).chunks == 1
    assert [read_chunk(engine, chunk_id)["status"] for chunk_id in job.chunk_ids] == [
        "completed",
        "completed",
        "pending",
    ]
    check_books(engine)


def test_what_is_tried_again_is_as_urgent_as_its_job(engine):
    """Ended chunks kept the priority that the job had then."""
    job = new_job(engine, [1], priority=3)
    chunk_id = end_next(engine, [refused(0)])
    change(engine, "UPDATE crawl_jobs SET priority = 9")
    assert again(engine, job).chunks == 1
    assert read_chunk(engine, chunk_id)["priority"] == 9
    assert read_job(engine, job.id)["ready_priority"] == 9


def test_two_retries_at_once_take_each_failure_once(engine):
    """The second waits for the first, and leaves the chunk alone that a worker has by then, with a new failure."""
    job = new_job(engine, [3])
    end_next(engine, [refused(place) for place in range(3)])
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            assert retry_chunks(session, job.id, ALL_FAILURES).reasons == {"http_status": 3}
            second = thread.submit(again, engine, job)
            wait_for_blocked(engine)
            [message] = queue_next(session, 1)
            chunk = start_chunk(session, message.chunk_id, message.attempt, "worker@test", LEASE_SECONDS)
            assert chunk is not None
            checkpoint_chunk(session, chunk.fence, [refused(0)], LEASE_SECONDS)
        assert second.result(10).reasons == {}
    check_books(engine)


def test_two_retries_of_two_chunks_at_once_share_what_is_wanted(engine):
    """The second waits for the first, and takes what ``max_images`` has room for then: nothing."""
    job = new_job(engine, [4, 4], max_images=8)
    for start in (0, 4):
        end_next(engine, [refused(place, Reason.DNS) for place in range(start, start + 4)])
    change(engine, "UPDATE crawl_jobs SET max_images = 2")
    first, second = (only(Reason.DNS, chunks=[chunk_id]) for chunk_id in job.chunk_ids)
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            assert retry_chunks(session, job.id, first).reasons == {"dns": 2}
            other = thread.submit(again, engine, job, second)
            wait_for_blocked(engine)
        assert other.result(10).reasons == {}
    check_books(engine)


def test_chunks_that_have_not_ended_are_left_alone(engine):
    """What a worker has, and what waits, keep their failures."""
    job = new_job(engine, [3, 3])
    chunk = start_next(engine)
    with transaction(engine) as session:
        checkpoint_chunk(session, chunk.fence, [refused(0)], LEASE_SECONDS)
    other = start_next(engine)
    with transaction(engine) as session:
        hand_back_chunk(session, other.fence, [refused(3)])
    assert again(engine, job).reasons == {}
    assert read_job(engine, job.id)["failures"] == {"http_status": 2}
    check_books(engine)


def test_a_retry_beside_the_end_of_its_job(engine):
    """Whichever is first, the job runs in the end, and nothing is counted twice."""
    job = new_job(engine, [3])
    end_next(engine, [refused(place) for place in range(3)])
    with transaction(engine) as session:
        retry_chunks(session, job.id, ALL_FAILURES)
        assert close(engine) is None
    assert read_job(engine, job.id)["status"] == "running"
    end_next(engine, [refused(place) for place in range(3)])
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            assert close_job(session) == job.id
            second = thread.submit(again, engine, job)
            wait_for_blocked(engine)
        assert second.result(10).reasons == {"http_status": 3}
    assert read_job(engine, job.id)["status"] == "running"
    check_books(engine)


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_a_retry_beside_a_cancellation(engine, cancelled_first):
    """A job that is being cancelled is left alone; what came back before is drained."""
    job = new_job(engine, [3, 2])
    end_next(engine, [refused(place) for place in range(3)])
    if not cancelled_first:
        again(engine, job)
    with transaction(engine) as session:
        assert cancel_job(session, job.id)
    if cancelled_first:
        with pytest.raises(RetryError, match="is being cancelled"):
            again(engine, job)
    else:
        assert again(engine, job).reasons == {}
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id) == (1 if cancelled_first else 2)
    assert close(engine) == job.id
    assert read_job(engine, job.id)["failures"] == (
        {"http_status": 3, "cancelled": 2} if cancelled_first else {"cancelled": 5}
    )
    check_books(engine)


def test_a_stale_look_drains_nothing(engine):
    """Who saw the job cancelled before it was retried ends none of its chunks."""
    job = new_job(engine, [3])
    with transaction(engine) as session:
        cancel_job(session, job.id)
        assert drain_cancelled(session, job.id) == 1
    assert close(engine) == job.id
    assert again(engine, job).reasons == {"cancelled": 3}
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id) == 0
    assert positions(engine) == [0, 1, 2]


def test_what_cannot_be_retried(engine, tmp_path):
    """Unknown jobs and chunks, jobs of other services, and users who are being deleted: a sentence each."""
    url = tmp_path.as_uri()
    job, other = new_job(engine, [1]), new_job(engine, [1])
    end_next(engine, [refused(0)])

    def refusal(job_id: int, selection: Selection = ALL_FAILURES) -> str:
        with pytest.raises(RetryError) as error:
            retry(engine, url, job_id, selection)
        return str(error.value)

    assert refusal(999) == "There is no job 999: `pixtrawl jobs` shows those there are."
    chunks = only(Reason.DNS, chunks=[*job.chunk_ids, *other.chunk_ids, 998])
    assert refusal(job.id, chunks).startswith(f"Job {job.id} has no chunk {other.chunk_ids[0]}, 998: ")
    change(engine, "UPDATE crawl_jobs SET source_kind = NULL WHERE id = :id", id=other.id)
    assert "made by another service" in refusal(other.id)
    change(
        engine, "UPDATE crawl_jobs SET deleting_at = now(), cancelled_at = now() WHERE id = :id", id=job.id
    )
    assert refusal(job.id) == f"Job {job.id} is being deleted: `pixtrawl delete {job.id}` completes that."
    change(engine, "UPDATE crawl_jobs SET deleting_at = NULL, cancelled_at = NULL WHERE id = :id", id=job.id)
    change(engine, "UPDATE credit_accounts SET closing_at = now()")
    assert "is being deleted" in refusal(job.id)
    assert read_chunk(engine, job.chunk_ids[0])["status"] == "completed"


def test_a_retry_is_in_the_owners_activity(engine, tmp_path):
    """With its figures, once."""
    job = new_job(engine, [2])
    end_next(engine, [refused(0), refused(1)])
    done: Retry = retry(engine, tmp_path.as_uri(), job.id, ALL_FAILURES)
    [(details,)] = query(engine, "SELECT metadata FROM activity_logs WHERE action = 'crawl_job.retried'")
    assert details == json.loads(json.dumps(done.report()))
    assert retry(engine, tmp_path.as_uri(), job.id, ALL_FAILURES).candidates == 0
    assert query(engine, "SELECT count(*) FROM activity_logs WHERE action = 'crawl_job.retried'") == [(1,)]
