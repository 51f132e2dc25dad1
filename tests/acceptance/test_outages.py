"""Services that go away under a real worker and scheduler: said once, waited for, and all goes on by itself."""

import sys

import pytest

from tests.support.crawling import check_books, read_job
from tests.support.fleet import Fleet, ended, new_crawl, said
from tests.support.processes import until
from tests.support.site import Site
from tests.support.switches import Switches

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def switches(database_url):
    """A Valkey and a way to PostgreSQL of this test's own."""
    with Switches(database_url) as opened:
        yield opened


def test_a_start_before_the_services_waits_for_them(engine, switches, tmp_path) -> None:
    """Worker and scheduler say once that PostgreSQL is away, then that Redis is, and work when both are there."""
    switches.database_off(engine)
    switches.redis_off()
    with Site() as site, Fleet(tmp_path, switches.database_url, switches.redis_url) as fleet:
        both = [fleet.scheduler(), fleet.start("worker", "--concurrency", 1)]
        for command in both:
            until(lambda command=command: "waited for" in command.errors, "the word about PostgreSQL")
        switches.database_on()
        for command in both:
            until(lambda command=command: said(command, "broker_away"), "the word about Redis")
        switches.redis_on()
        job = new_crawl(engine, [f"{site.url}/free/{place}" for place in range(5)], tmp_path.as_uri())
        assert ended(engine, job)["valid_images"] == 5
        for command in both:
            assert command.errors.count("waited for") == said(command, "broker_away") == 1, command.errors
    check_books(engine)


def test_services_that_go_away_are_said_once_and_waited_for(engine, switches, tmp_path) -> None:
    """A chunk under way loses nothing when Redis and PostgreSQL go and come back; no traceback is written.

    It has more transfers than go on aside.
    """
    with Site() as site, Fleet(tmp_path, switches.database_url, switches.redis_url, transfers=20) as fleet:
        both = fleet.both()
        urls = [f"{site.url}/held/{place}" for place in range(40)]
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=20)
        until(lambda: site.waiting == 20, "transfers")
        switches.redis_off()
        switches.database_off(engine)
        for command in both:
            until(lambda command=command: said(command, "database_away"), "the word about PostgreSQL")
        until(lambda: said(both[1], "broker_away"), "the word about Redis")
        site.release()
        until(lambda: len(site.served) == 20, "transfers while the services are away")
        switches.redis_on()
        switches.database_on()
        row = ended(engine, job, 90)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 40, {})
        for command in both:
            assert said(command, "database_away") == 1, command.errors
            assert "Traceback" not in command.errors
        assert said(both[1], "broker_away") == said(both[1], "broker_back") == 1
        assert read_job(engine, job.id)["active_chunks"] == 0
    check_books(engine)
