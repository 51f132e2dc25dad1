"""Workers that leave while they have chunks: told by a signal, by Flower, or by their pool; nothing is lost."""

import os
import signal
import socket
import sys
import time

import pytest
from celery import Celery

from models.settings import read_settings
from tests.support.crawling import check_books, query, read_chunk, read_job
from tests.support.fleet import Fleet, children_of, ended, new_crawl, said
from tests.support.processes import Command, until
from tests.support.site import Site
from worker.app import configuration

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def site():
    """A site with held pictures."""
    with Site() as opened:
        yield opened


@pytest.fixture
def control(services):
    """What Flower's buttons do: Celery's remote control."""
    app = Celery(set_as_current=False)
    app.config_from_object(configuration(read_settings(redis_url=services.redis_url)))
    yield app.control
    app.close()


def celery_name(worker: Command) -> str:
    """A worker's name in Flower."""
    return f"worker-{worker.process.pid}@{socket.gethostname()}"


def busy_job(engine, site, folder):
    """A job of one chunk with stored pictures and transfers that hang."""
    urls = [f"{site.url}/free/{number}" for number in range(20)]
    urls += [f"{site.url}/held/{number}" for number in range(100)]
    site.hold()
    job = new_crawl(engine, urls, folder.as_uri())
    until(lambda: site.waiting == 100 and len(list(folder.glob("*.png"))) == 20, "transfers")
    return job


def leave(worker, control, way) -> None:
    """Tell a worker, or its only child, to leave."""
    if way == "Flower":
        control.shutdown(destination=[celery_name(worker)])
    elif way == "child":  # As Celery's autoscaler and Flower's pool shrink do.
        os.kill(children_of(worker)[0], signal.SIGTERM)
    else:
        worker.interrupt(signal.Signals[way])


def test_a_worker_that_leaves_hands_its_chunk_back(
    engine, services, database_url, control, site, tmp_path
) -> None:
    """Within five seconds, with what is done, and no retry counted; another worker goes on with the rest."""
    with Fleet(tmp_path, database_url, services.redis_url, checkpoint_seconds=60) as fleet:
        scheduler, worker = fleet.both()
        for way in ("child", "SIGTERM", "SIGINT", "Flower"):
            job = busy_job(engine, site, tmp_path / f"images-{way}")
            began = time.monotonic()
            leave(worker, control, way)
            until(
                lambda job=job: read_job(engine, job.id)["active_chunks"] == 0, f"the chunk back: {way}", 10
            )
            assert time.monotonic() - began < 5, way
            chunk = read_chunk(engine, job.chunk_ids[0])
            assert (chunk["accepted"], chunk["retry_count"]) == (20, 0), way
            site.release()
            if way != "child":
                assert worker.wait(10) == (130 if way == "SIGINT" else 0), worker.errors
                assert time.monotonic() - began < 10, way
                worker = fleet.worker()
            row = ended(engine, job)
            assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 120, {}), way
        assert said(scheduler, "chunk_rescued") == 0
    check_books(engine)


def test_a_pool_that_shrinks_and_grows_loses_nothing(
    engine, services, database_url, control, site, tmp_path
) -> None:
    """Flower's pool buttons change the number of chunks at once; the window follows, and no lease is lost."""
    # Every other chunk is held as a whole: with a few stragglers only it would go on aside, in a slot of its own.
    urls = [f"{site.url}/{'held' if number // 60 % 2 else 'free'}/{number}" for number in range(1200)]
    with Fleet(tmp_path, database_url, services.redis_url, transfers=32) as fleet:
        scheduler, worker = fleet.both(2)
        name = celery_name(worker)
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=60)
        until(lambda: site.waiting, "work under way")
        control.pool_grow(1, destination=[name], reply=True)
        until(lambda: query(engine, "SELECT slots FROM workers") == [(3,)], "three slots")
        site.release()
        until(lambda: len(children_of(worker)) == 3, "three children")
        control.pool_shrink(2, destination=[name], reply=True)
        row = ended(engine, job)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 1200, {})
        # A pool whose children are all busy refuses to shrink, which may have been so before.
        [(looked,)] = query(engine, "SELECT now()")
        beat = "SELECT slots FROM workers WHERE seen_at > :looked"
        [(slots,)] = until(lambda: query(engine, beat, looked=looked), "a heartbeat")
        if slots > 1:
            control.pool_shrink(slots - 1, destination=[name], reply=True)
        until(lambda: query(engine, "SELECT slots FROM workers") == [(1,)], "one slot")
        assert said(scheduler, "chunk_rescued") == 0
    check_books(engine)
