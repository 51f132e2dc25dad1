"""Cancelling a job that real workers are at: transfers stop at once, and what is stored is settled."""

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from models.database import transaction
from models.job_lifecycle import cancel_job
from tests.support.bucket import URL, Bucket
from tests.support.crawling import change, check_books, query, read_chunk, read_job
from tests.support.fleet import Fleet, ended, new_crawl
from tests.support.processes import until
from tests.support.site import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
HELD = 280


@pytest.fixture
def site():
    """A site with held pictures."""
    with Site() as opened:
        yield opened


def cancel(engine, job_id: int) -> Callable[[], float]:
    """Cancel a job as `pixtrawl cancel` does; a clock of the seconds since."""
    with transaction(engine) as session:
        # A checkpoint that is held up for long has the job's row, too.
        session.execute(text("SET LOCAL lock_timeout = '30s'"))
        assert cancel_job(session, job_id)
    began = time.monotonic()
    return lambda: time.monotonic() - began


def seconds_until(condition: Callable[[], Any], since: Callable[[], float]) -> float:
    """The seconds since then at which a condition came true."""
    until(condition, seconds=20)
    return since()


def test_a_cancelled_job_settles_what_is_stored(engine, services, database_url, site, tmp_path) -> None:
    """With hundreds of transfers that hang and a picture that takes long, transfers end within two seconds, and so
    does the chunk; the job is closed right after.
    """
    store = tmp_path / "images"
    urls = [f"{site.url}/free/{number}" for number in range(20)]
    urls += [f"{site.url}/slow/2880", *(f"{site.url}/held/{number}" for number in range(HELD))]
    with Fleet(tmp_path, database_url, services.redis_url, transfers=400, checkpoint_seconds=60) as fleet:
        fleet.both()
        job = new_crawl(engine, urls, store.as_uri())
        until(lambda: site.waiting == HELD and len(list(store.glob("*.png"))) == 20, "transfers that hang")
        since = cancel(engine, job.id)
        stopped = seconds_until(lambda: site.waiting == 0, since)
        settled = seconds_until(lambda: read_chunk(engine, job.chunk_ids[0])["status"] == "completed", since)
        row = ended(engine, job)
        closed = since()
    assert (stopped < 2, settled < 2, closed < 3) == (True, True, True), (stopped, settled, closed)
    assert (row["status"], row["valid_images"], row["failures"]) == ("cancelled", 20, {"cancelled": HELD + 1})
    check_books(engine)


def test_a_store_that_does_not_answer_holds_up_no_cancellation(
    engine, services, database_url, site, tmp_path
) -> None:
    """What is being put when the job is cancelled is given up after half a second."""
    with (
        Bucket() as bucket,
        Fleet(tmp_path, database_url, services.redis_url, bucket.environment) as fleet,
    ):
        _, worker = fleet.both()
        job = new_crawl(engine, [f"{site.url}/free/{number}" for number in range(100)], URL)
        until(lambda: bucket.puts, "a put that hangs")
        since = cancel(engine, job.id)
        row = ended(engine, job)
        assert since() < 3
        assert (row["status"], row["failures"]) == ("cancelled", {"cancelled": 100})
        bucket.answer()
        worker.interrupt()
    check_books(engine)


@contextmanager
def checkpoints_held_up(database_url: str, user_id: object):
    """Hold the last row that a checkpoint writes, as a slow disk would."""
    from models.database import make_engine

    engine = make_engine(database_url, idle_in_transaction_session_timeout="0")
    day = """INSERT INTO usage_metrics (user_id, metric_date)
        VALUES (:user_id, CAST(now() AT TIME ZONE 'utc' AS date)) ON CONFLICT DO NOTHING"""
    change(engine, day, user_id=user_id)
    with engine.connect() as connection:
        connection.execute(
            text("SELECT FROM usage_metrics WHERE user_id = :user_id FOR UPDATE"), {"user_id": user_id}
        )
        yield
        connection.rollback()
    engine.dispose()


def test_a_commit_that_waits_holds_up_no_transfer(engine, services, database_url, site, tmp_path) -> None:
    """While a checkpoint waits for a row, the worker sees the cancellation all the same."""
    urls = [f"{site.url}/free/{number}" for number in range(5)]
    urls += [f"{site.url}/held/{number}" for number in range(50)]
    waiting = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'pixtrawl worker' AND wait_event_type = 'Lock'"""
    with Fleet(tmp_path, database_url, services.redis_url, checkpoint_seconds=1) as fleet:
        fleet.both()
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri())
        with checkpoints_held_up(database_url, job.user_id):
            until(lambda: site.waiting == 50 and query(engine, waiting) == [(1,)], "a checkpoint that waits")
            since = cancel(engine, job.id)
            assert seconds_until(lambda: site.waiting == 0, since) < 2
            assert read_job(engine, job.id)["valid_images"] == 0
        row = ended(engine, job)
    assert (row["valid_images"], row["failures"]) == (5, {"cancelled": 50})
    check_books(engine)


def test_a_large_cancelled_job_is_drained_without_a_pause(
    engine, services, database_url, site, tmp_path
) -> None:
    """Thousands of waiting chunks end in batches, one right after the other."""
    urls = [f"{site.url}/held/{number}" for number in range(3000)]
    with Fleet(tmp_path, database_url, services.redis_url) as fleet:
        fleet.both()
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=1)
        until(lambda: site.waiting, "a transfer that hangs")
        since = cancel(engine, job.id)
        row = ended(engine, job)
        assert since() < 6
    assert row["failures"] == {"cancelled": 3000}
    check_books(engine)
