"""Workers that are lost over a chunk again and again: arrows on real PostgreSQL."""

from sqlalchemy import text

from models.database import transaction
from models.ending import rescue_chunk
from models.lifecycle import checkpoint_chunk, hand_back_chunk
from tests.support.crawling import (
    LEASE_SECONDS,
    accepted,
    change,
    check_books,
    expire_lease,
    new_job,
    read_chunk,
    read_job,
    start_next,
)

LOST_LEASES_MAX = 20
WAIT = text("SELECT CAST(extract(epoch FROM available_at - now()) AS float8) FROM job_chunks")


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


def test_innocent_chunks_survive_any_number_of_losses(engine) -> None:
    """With an outcome in between, thirty lost workers count as one; handed back, they count as none; and what has
    no outcome has none.
    """
    job = new_job(engine, [31])
    for place in range(30):
        chunk = start_next(engine)
        with transaction(engine) as session:
            assert checkpoint_chunk(session, chunk.fence, [accepted(place)], LEASE_SECONDS) is not None
        assert read_chunk(engine, job.chunk_ids[0])["retry_count"] == 0
        expire_lease(engine, job.chunk_ids[0])
        with transaction(engine) as session:
            rescued = rescue_chunk(session, LOST_LEASES_MAX)
        assert rescued is not None
        assert not rescued.failed
    chunk = start_next(engine)
    assert [candidate.position for candidate in chunk.candidates] == [30]
    for _ in range(30):
        with transaction(engine) as session:
            assert hand_back_chunk(session, chunk.fence, []) is not None
        chunk = start_next(engine)
        assert chunk.retry_count == 1
    assert read_job(engine, job.id)["failures"] == {}
    check_books(engine)
