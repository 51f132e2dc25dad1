"""Pictures that kill their worker, whatever it does: each costs itself, and no other candidate."""

import os
import signal
import sys

import pytest
from sqlalchemy import text

from models.database import transaction
from tests.support.crawling import check_books, query
from tests.support.fleet import Fleet, children_of, ended, new_crawl, said
from tests.support.site import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
WORKER = text("SELECT worker FROM job_chunks WHERE status = 'processing'")
DEADLY = (7, 23, 41)


def test_three_deadly_candidates_of_fifty_cost_three(engine, services, database_url, tmp_path) -> None:
    """A child that is killed as soon as it asks for one of three URLs: exactly these are worker_lost."""
    with (
        Site() as site,
        Fleet(tmp_path, database_url, services.redis_url, lease_seconds=3, chunk_size=50) as fleet,
    ):
        scheduler, worker = fleet.both()

        def strike() -> None:
            with transaction(engine) as session:
                pids = [int(name.rpartition("/")[2]) for name in session.execute(WORKER).scalars()]
            for pid in set(pids) & set(children_of(worker)):
                os.kill(pid, signal.SIGKILL)

        site.strike = strike
        urls = [f"{site.url}/{'deadly' if place in DEADLY else 'free'}/{place}" for place in range(50)]
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri())
        row = ended(engine, job, seconds=180)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 47, {"worker_lost": 3})
        assert query(engine, "SELECT position FROM failures ORDER BY 1") == [(place,) for place in DEADLY]
        assert said(scheduler, "chunk_rescued") <= 6 * len(DEADLY)
    check_books(engine)
