"""What a site sees of several real workers, and what others see of a site that is slow, busy or dead."""

import datetime
import email.utils
import socket
import time

import pytest

from tests.support.crawling import check_books, query
from tests.support.fleet import Fleet, ended, new_crawl, said
from tests.support.processes import until
from tests.support.site import Site


@pytest.fixture
def site():
    """A site whose log is looked at."""
    with Site() as opened:
        yield opened


def test_two_workers_keep_to_the_rate_of_a_host(engine, services, database_url, site, tmp_path) -> None:
    """With thirty requests a second allowed, no second has more, and the job takes no longer than that."""
    urls = [f"{site.url}/free/{number}" for number in range(120)]
    with Fleet(tmp_path, database_url, services.redis_url, host_rate=30) as fleet:
        fleet.both()
        fleet.worker()
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=20)
        row = ended(engine, job)
    assert (row["status"], row["valid_images"]) == ("completed", 120)
    times = sorted(when for when, path in site.log if path.startswith("/free/"))
    assert len(times) == 120
    assert max(sum(first <= when < first + 1 for when in times) for first in times) <= 33
    assert times[-1] - times[0] < 12
    check_books(engine)


def test_a_busy_host_is_left_alone_by_all_and_holds_up_nobody(
    engine, services, database_url, site, tmp_path
) -> None:
    """One child, and a host that asks everybody to wait until a date: its chunks are parked, another job runs
    through, and then everything of it is fetched. No retry is counted and nothing is charged twice.
    """
    free_at = datetime.datetime.max.replace(tzinfo=datetime.UTC)

    def refuse(path: str) -> str | None:
        nonlocal free_at
        if not path.startswith("/free/"):
            return None  # Its owner's files are there.
        now = datetime.datetime.now(datetime.UTC)
        free_at = min(free_at, now.replace(microsecond=0) + datetime.timedelta(seconds=16))
        return email.utils.format_datetime(free_at, usegmt=True) if now < free_at else None

    site.refuse = refuse
    with Site() as other, Fleet(tmp_path, database_url, services.redis_url, host_transfers=8) as fleet:
        scheduler, worker = fleet.both()
        busy = [f"{site.url}/free/{number}" for number in range(60)]
        job = new_crawl(engine, busy, (tmp_path / "images").as_uri(), chunk_size=20, priority=9)
        until(lambda: said(worker, "chunk_parked"), "a parked chunk")
        urls = [f"{other.url}/free/{number}" for number in range(40)]
        quick = ended(engine, new_crawl(engine, urls, (tmp_path / "others").as_uri(), chunk_size=20))
        assert datetime.datetime.now(datetime.UTC) < free_at
        assert quick["valid_images"] == 40
        row = ended(engine, job)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 60, {})
        assert said(scheduler, "chunk_rescued") == 0
    refused = len(site.log) - len(site.served)
    assert refused <= 8  # As many as were under way when the first was refused.
    assert query(engine, "SELECT max(retry_count) FROM job_chunks") == [(0,)]
    check_books(engine)


def test_a_dead_host_costs_seconds(engine, services, database_url, tmp_path) -> None:
    """Three thousand URLs of a host that takes connections and never answers, with fifteen seconds of patience for
    each, end within a few more: each has the host's reason, and all of them can be tried again later.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        urls = [f"{address}/{number}.jpg" for number in range(3000)]
        with Fleet(tmp_path, database_url, services.redis_url, host_transfers=8, read_seconds_max=5) as fleet:
            fleet.both(2)
            began = time.monotonic()
            job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=500)
            row = ended(engine, job)
            seconds = time.monotonic() - began
    assert (row["status"], row["failures"]) == ("completed", {"timeout": 3000})
    assert seconds < 20
    details = query(
        engine, "SELECT DISTINCT detail FROM failures WHERE detail LIKE '%is not asked for a while%'"
    )
    assert len(details) >= 1
    check_books(engine)
