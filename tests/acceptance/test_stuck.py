"""What hangs for ever in a worker: its chunk comes free, and everybody else goes on."""

import sys
import time

import pytest

from tests.support.bucket import URL, Bucket
from tests.support.crawling import check_books, query, read_chunk
from tests.support.fleet import Fleet, children_of, ended, new_crawl, said
from tests.support.processes import until
from tests.support.site import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def site():
    """A site with pictures."""
    with Site() as opened:
        yield opened


def test_a_put_that_hangs_ends_its_process_and_no_candidate(
    engine, services, database_url, site, tmp_path
) -> None:
    """A store that takes a picture and never answers costs the child after its time; the chunk waits with its
    hold, no retry is counted, and when the store answers again every image is stored.
    """
    with (
        Bucket() as bucket,
        Fleet(tmp_path, database_url, services.redis_url, bucket.environment, store_seconds_max=2) as fleet,
    ):
        scheduler, worker = fleet.both()
        [child] = children_of(worker)
        job = new_crawl(engine, [f"{site.url}/free/{number}" for number in range(10)], URL)
        until(lambda: bucket.puts, "a put that hangs")
        began = time.monotonic()
        until(lambda: child not in children_of(worker), "the end of the child")
        assert time.monotonic() - began < 15
        chunk = read_chunk(engine, job.chunk_ids[0])
        assert (chunk["status"], chunk["retry_count"]) == ("pending", 0)
        assert chunk["available_at"] is not None
        assert "the store took longer than 2 seconds" in worker.errors
        check_books(engine)
        bucket.answer()
        row = ended(engine, job)
        assert (row["status"], row["valid_images"], len(bucket.objects)) == ("completed", 10, 10)
        assert said(scheduler, "chunk_rescued") == 0
    check_books(engine)


def test_a_decoder_that_hangs_costs_one_candidate(engine, services, database_url, site, tmp_path) -> None:
    """The child ends after the picture's time, the next attempt decodes in a helper, and only that picture is
    lost.
    """
    urls = [f"{site.url}/free/{number}" for number in range(10)]
    urls.insert(5, f"{site.url}/slow/2880")
    with Fleet(tmp_path, database_url, services.redis_url, decode_seconds_max=1) as fleet:
        scheduler, worker = fleet.both()
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri())
        row = ended(engine, job)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 10, {"worker_lost": 1})
        assert said(worker, "chunk_stuck") == said(scheduler, "chunk_rescued") == 1
    assert query(engine, "SELECT position, detail FROM failures") == [
        (5, "decoding it took longer than 1 seconds")
    ]
    check_books(engine)
