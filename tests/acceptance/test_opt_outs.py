"""Two real workers on one site: its owner is asked once, and what he forbids is never requested."""

from itertools import pairwise

from scheduler.demo_site import DemoSite
from tests.support.crawling import check_books, query
from tests.support.fleet import Fleet, ended, new_crawl
from tests.support.site import Site

PHOTOGRAPHS = 60
IMAGE_BYTES_MAX = 2_000_000


def test_two_workers_ask_a_site_once(engine, redis_url, database_url, tmp_path) -> None:
    """Four children begin at once: the site sees one request for each of its two files, each line ends as told,
    and each refusal has the line that it rests on.
    """
    settings = {"image_bytes_max": IMAGE_BYTES_MAX, "transfer_attempts": 3}
    with (
        DemoSite(PHOTOGRAPHS, image_bytes_max=IMAGE_BYTES_MAX) as site,
        Fleet(tmp_path, database_url, redis_url, **settings) as fleet,
    ):
        for _ in range(2):
            fleet.worker(2)
        job = new_crawl(engine, site.lines, (tmp_path / "images").as_uri(), chunk_size=8)
        fleet.scheduler()
        row = ended(engine, job)
        asked = {path: site.requests[path].count for path in ("/robots.txt", "/.well-known/tdmrep.json")}
        failed = query(engine, "SELECT position, reason FROM failures WHERE job_id = :id", id=job.id)
        images = query(engine, "SELECT position, 'accepted' FROM images WHERE crawl_job_id = :id", id=job.id)
        outcomes = {position + 1: str(outcome) for position, outcome in [*failed, *images]}
        assert site.differences(outcomes) == []
    assert asked == {"/robots.txt": 1, "/.well-known/tdmrep.json": 1}
    evidence = query(engine, "SELECT evidence->>'line' FROM failures WHERE evidence IS NOT NULL ORDER BY 1")
    assert [line for (line,) in evidence] == sorted(
        [
            "Disallow: /private/",
            "X-Robots-Tag: noai, noimageai",
            "tdm-reservation: 1",
            '{"location": "/mined/", "tdm-reservation": 1}',
        ]
    )
    assert row["valid_images"] == site.expected_counts()["accepted"]
    check_books(engine)


def test_two_workers_keep_to_a_crawl_delay(engine, redis_url, database_url, tmp_path) -> None:
    """Half a second between any two requests of all children, the second file of the owner included."""
    with (
        Site() as site,
        Fleet(tmp_path, database_url, redis_url) as fleet,
    ):
        site.robots = "User-agent: *\nCrawl-delay: 0.5\nDisallow: /held/\n"
        for _ in range(2):
            fleet.worker(2)
        urls = [f"{site.url}/{kind}/{number}" for number in range(8) for kind in ("free", "held")]
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=4)
        fleet.scheduler()
        row = ended(engine, job)
    assert (row["valid_images"], row["failures"]) == (8, {"robots": 8})
    assert not site.held_asked()
    assert sorted(path for _, path in site.wishes) == ["/.well-known/tdmrep.json", "/robots.txt"]
    times = sorted(when for when, path in [*site.log, *site.wishes] if path != "/robots.txt")
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.4, times
    check_books(engine)
