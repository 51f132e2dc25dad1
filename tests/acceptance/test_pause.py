"""Pausing a job that real workers are at: what is in flight finishes, nothing else begins, and resume goes on."""

import sys

import pytest

from models.database import transaction
from models.job_lifecycle import pause_job, resume_job
from tests.support.crawling import balance_of, check_books, query
from tests.support.fleet import Fleet, ended, new_crawl, said
from tests.support.processes import until
from tests.support.site import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
STATES = "SELECT status, queued_at IS NOT NULL, count(*) FROM job_chunks GROUP BY 1, 2 ORDER BY 1"


def test_pause_lets_chunks_in_flight_finish_and_resume_goes_on(
    engine, services, database_url, tmp_path
) -> None:
    """The chunk of the only slot ends; the others leave the queue, hold nothing and wait for the resume."""
    # More transfers in a chunk than go on aside.
    with Site() as site, Fleet(tmp_path, database_url, services.redis_url, transfers=20) as fleet:
        scheduler, _ = fleet.both()
        urls = [f"{site.url}/held/{place}" for place in range(100)]
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=20, balance=1000)
        until(lambda: site.waiting == 20, "a chunk in flight")
        until(lambda: balance_of(engine, job) == 960, "another that is queued")
        with transaction(engine) as session:
            assert pause_job(session, job.id)
        until(lambda: balance_of(engine, job) == 980, "the holds of what waits given back")
        assert query(engine, STATES) == [("pending", False, 4), ("processing", False, 1)]
        assert site.waiting == 20
        site.release()
        until(lambda: query(engine, STATES) == [("completed", False, 1), ("pending", False, 4)], "its end")
        check_books(engine)
        rounds = query(engine, "SELECT round_at FROM leadership")
        until(lambda: query(engine, "SELECT round_at FROM leadership") > rounds, "rounds of the scheduler")
        assert len(site.served) == 20
        with transaction(engine) as session:
            assert resume_job(session, job.id)
        row = ended(engine, job)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 100, {})
        assert said(scheduler, "chunk_rescued") == 0
    check_books(engine)
