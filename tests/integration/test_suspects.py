"""Which candidate is to blame when worker after worker is lost: arrows on real PostgreSQL."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from models.database import transaction
from models.ending import RescuedChunk, rescue_chunk
from models.lifecycle import Fence, StartedChunk, checkpoint_chunk, hand_back_chunk, settle_chunk
from models.suspects import GUILTY_LOSSES, Suspicion, suspect_candidate, suspicion
from tests.support.crawling import (
    LEASE_SECONDS,
    accepted,
    change,
    check_books,
    expire_lease,
    new_job,
    query,
    read,
    read_chunk,
    read_job,
    refused,
    start_next,
)

LOST_LEASES_MAX = 20
WAIT = text("SELECT CAST(extract(epoch FROM available_at - now()) AS float8) FROM job_chunks")


def how(engine, chunk: StartedChunk) -> Suspicion:
    """How a started chunk is run."""
    with transaction(engine) as session:
        return suspicion(session, chunk.fence.chunk_id, chunk.retry_count)


def name(engine, chunk: StartedChunk, place: int, outcomes=()) -> None:
    """Commit that the candidate at this place of the chunk runs alone."""
    with transaction(engine) as session:
        candidate = chunk.candidates[place]
        assert suspect_candidate(session, chunk.fence, outcomes, LEASE_SECONDS, candidate) is not None


def lose(engine, chunk: StartedChunk, most: int = LOST_LEASES_MAX) -> RescuedChunk:
    """Let the chunk's worker be lost, and the time pass for which the chunk waits then."""
    expire_lease(engine, chunk.fence.chunk_id)
    with transaction(engine) as session:
        rescued = rescue_chunk(session, most)
    assert rescued is not None
    check_books(engine)
    change(engine, "UPDATE job_chunks SET available_at = NULL")
    return rescued


def test_a_chunk_runs_alone_after_two_losses_without_an_outcome(engine) -> None:
    """First as usual, then carefully, then one at a time."""
    new_job(engine, [3])
    ways = []
    for _ in range(3):
        chunk = start_next(engine)
        ways.append((chunk.retry_count, how(engine, chunk).alone))
        lose(engine, chunk)
    assert ways == [(0, False), (1, False), (2, True)]


def test_a_chunk_waits_longer_and_longer_between_its_losses(engine) -> None:
    """Not after the first; from the second on twice as long each time, and never more than half a minute."""
    new_job(engine, [3])
    waits = []
    for _ in range(10):
        chunk = start_next(engine)
        expire_lease(engine, chunk.fence.chunk_id)
        with transaction(engine) as session:
            rescue_chunk(session, LOST_LEASES_MAX)
            waits.append(session.execute(WAIT).scalar_one())
        change(engine, "UPDATE job_chunks SET available_at = NULL")
    assert waits == [None, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_candidate_under_which_worker_after_worker_was_lost_is_guilty(engine) -> None:
    """The first loss makes it the first to run, the fourth is its outcome; the others are crawled as usual."""
    job = new_job(engine, [3])
    for _ in range(2):
        lose(engine, start_next(engine))
    for loss in range(GUILTY_LOSSES):
        chunk = start_next(engine)
        assert how(engine, chunk) == Suspicion(alone=True, first=1 if loss else None)
        name(engine, chunk, 1)
        convicted = loss == GUILTY_LOSSES - 1
        assert lose(engine, chunk) == RescuedChunk(
            job.chunk_ids[0], job.id, failed=False, convicted=convicted
        )
    chunk = start_next(engine)
    assert how(engine, chunk) == Suspicion()
    assert [candidate.position for candidate in chunk.candidates] == [0, 2]
    with transaction(engine) as session:
        settle_chunk(session, chunk.fence, [accepted(0), accepted(2)])
    assert read_job(engine, job.id)["failures"] == {"worker_lost": 1}
    assert query(engine, "SELECT url, detail FROM failures") == [
        ("http://images.test/1.jpg", "4 workers in a row were lost while nothing else ran")
    ]
    check_books(engine)


def test_a_conviction_saves_the_chunk_at_its_last_loss(engine) -> None:
    """With as many losses as are allowed, the others go on all the same."""
    job = new_job(engine, [3])
    for _ in range(2):
        lose(engine, start_next(engine))
    for _ in range(GUILTY_LOSSES):
        chunk = start_next(engine)
        name(engine, chunk, 1)
        rescued = lose(engine, chunk, most=GUILTY_LOSSES + 1)
    assert rescued == RescuedChunk(job.chunk_ids[0], job.id, failed=False, convicted=True)
    assert [candidate.position for candidate in start_next(engine).candidates] == [0, 2]


@pytest.mark.parametrize("outcome", [accepted, refused])
def test_a_candidate_that_has_its_outcome_is_not_convicted(engine, outcome) -> None:
    """A worker that hangs after it commits what it has before it is given up: its suspect may be done."""
    job = new_job(engine, [3])
    for _ in range(2):
        lose(engine, start_next(engine))
    for loss in range(1, GUILTY_LOSSES + 1):
        chunk = start_next(engine)
        name(engine, chunk, 1)
        if loss == GUILTY_LOSSES:
            with transaction(engine) as session:
                assert checkpoint_chunk(session, moved_on(chunk), [outcome(1)], LEASE_SECONDS) is not None
        assert not lose(engine, chunk).convicted
    row = read_chunk(engine, job.chunk_ids[0])
    assert (row["accepted"] + row["failed"], row["retry_count"]) == (1, 1)


def test_only_losses_in_a_row_under_the_same_candidate_count(engine) -> None:
    """Another candidate in between, a chunk that was handed back, or a run of another kind begins anew."""
    new_job(engine, [3])
    for _ in range(2):
        lose(engine, start_next(engine))
    chunk = start_next(engine)
    name(engine, chunk, 0)
    lose(engine, chunk)
    for place in (1, 2):
        chunk = start_next(engine)
        name(engine, chunk, place)
        assert read(engine, "SELECT position, losses FROM suspects") == {"position": place, "losses": 0}
        change(engine, "UPDATE job_chunks SET retry_count = 2")
        assert not lose(engine, chunk).convicted
    chunk = start_next(engine)
    with transaction(engine) as session:
        hand_back_chunk(session, chunk.fence, [])
    assert not lose(engine, start_next(engine)).convicted  # It named nobody: no suspect ran.
    assert query(engine, "SELECT count(*) FROM failures") == [(0,)]


def test_a_chunk_that_goes_on_suspects_nobody(engine) -> None:
    """With an outcome since the last loss it is run as any other; once one more worker is lost, who ran alone when
    another was is tried first.
    """
    new_job(engine, [3])
    for _ in range(2):
        lose(engine, start_next(engine))
    chunk = start_next(engine)
    name(engine, chunk, 1)
    lose(engine, chunk)
    chunk = start_next(engine)
    assert how(engine, chunk).first == 1
    with transaction(engine) as session:
        assert hand_back_chunk(session, chunk.fence, [accepted(0)]) is not None
    chunk = start_next(engine)
    assert how(engine, chunk) == Suspicion()
    lose(engine, chunk)
    assert how(engine, start_next(engine)) == Suspicion(alone=True, first=1)


def test_a_candidate_that_ran_alone_and_lost_nobody_is_no_suspect(engine) -> None:
    """A worker that is lost later, over something else, does not bring it up again."""
    new_job(engine, [3])
    for _ in range(2):
        lose(engine, start_next(engine))
    chunk = start_next(engine)
    name(engine, chunk, 1)
    with transaction(engine) as session:
        assert hand_back_chunk(session, moved_on(chunk), [accepted(0)]) is not None
    lose(engine, start_next(engine))
    chunk = start_next(engine)
    assert (chunk.retry_count, how(engine, chunk)) == (1, Suspicion())


def test_a_worker_that_lost_its_chunk_names_nobody(engine) -> None:
    """Its fence does not hold any more."""
    new_job(engine, [3])
    chunk = start_next(engine)
    lose(engine, chunk)
    with transaction(engine) as session:
        candidate = chunk.candidates[0]
        assert suspect_candidate(session, chunk.fence, [], LEASE_SECONDS, candidate) is None
    assert query(engine, "SELECT FROM suspects") == []


def test_innocent_chunks_survive_any_number_of_losses(engine) -> None:
    """With an outcome in between, thirty lost workers count as one; handed back, they count as none."""
    job = new_job(engine, [31])
    for place in range(30):
        chunk = start_next(engine)
        name(engine, chunk, 0)
        with transaction(engine) as session:
            hand_back = hand_back_chunk(session, moved_on(chunk), [accepted(place)])
        assert hand_back is not None
        assert read_chunk(engine, job.chunk_ids[0])["retry_count"] == 0
        assert not lose(engine, start_next(engine)).failed
    chunk = start_next(engine)
    assert [candidate.position for candidate in chunk.candidates] == [30]
    for _ in range(30):
        with transaction(engine) as session:
            hand_back_chunk(session, chunk.fence, [])
        chunk = start_next(engine)
        assert chunk.retry_count == 1
    check_books(engine)


def moved_on(chunk: StartedChunk) -> Fence:
    """The chunk's fence after one more checkpoint."""
    return replace(chunk.fence, checkpoint=chunk.fence.checkpoint + 1)
