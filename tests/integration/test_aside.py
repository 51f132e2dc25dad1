"""Chunks of which only stragglers are left go on aside, while their child crawls the next one."""

import asyncio
import mmap
import os
import signal
import subprocess
import sys
from concurrent.futures import Future, wait

import pytest

from models.database import transaction
from models.ending import rescue_chunk
from models.settings import Settings, read_settings
from tests.support.crawling import change, check_books, job_of, query, queue_ready, read_chunk, read_job
from tests.support.fleet import new_crawl
from tests.support.processes import until
from tests.support.site import Site
from worker import presence
from worker.child import ASIDE_MAX, Child
from worker.crawl import crawl_chunk
from worker.watchdog import Work


@pytest.fixture
def site():
    """A site with held pictures."""
    with Site() as opened:
        yield opened


@pytest.fixture
def settings(services, database_url, tmp_path) -> Settings:
    """Settings of a worker on this test's database."""
    return read_settings(
        home=tmp_path,
        database_url=database_url,
        redis_url=services.redis_url,
        allowed_networks="127.0.0.0/8",
        lease_seconds=3,
        checkpoint_seconds=0.2,
        host_transfers=100,
    )


@pytest.fixture
def child(settings, monkeypatch):
    """What a pool child has open, in a pool of its own."""
    monkeypatch.setattr(presence, "ASIDE", mmap.mmap(-1, 8))
    opened = Child(settings)
    yield opened
    opened.close()


def queue_pair(engine, site, tmp_path, held=(5,)):
    """A job of two queued chunks, the first with a held picture among others; and their messages."""
    urls = [f"{site.url}/{'held' if number in held else 'free'}/{number}" for number in range(11)]
    job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=6)
    return job, queue_ready(engine)


def crawl(child: Child, message) -> None:
    """What the task does for a message."""
    begin(child, message).result(20)


def begin(child: Child, message) -> Future[None]:
    """The same, beside the test."""
    return asyncio.run_coroutine_threadsafe(crawl_chunk(child, message.chunk_id, message.attempt), child.loop)


def test_a_straggler_holds_up_no_child(engine, child, site, tmp_path) -> None:
    """The child is free for the next chunk, what is done is committed, and the straggler has its outcome in the
    end: its lease is renewed meanwhile, though the pool has nothing to do.
    """
    job, messages = queue_pair(engine, site, tmp_path)
    crawl(child, messages[0])
    assert (len(child.aside_chunks), presence.ASIDE[0]) == (1, 1)
    crawl(child, messages[1])
    until(lambda: site.waiting == 1 and read_chunk(engine, messages[0].chunk_id)["accepted"] == 5, "the rest")
    chunk = read_chunk(engine, messages[0].chunk_id)
    assert chunk["status"] == "processing"
    assert read_chunk(engine, messages[1].chunk_id)["status"] == "completed"
    renewed = "SELECT 1 FROM job_chunks WHERE lease_until > :lease + interval '3 s'"
    until(lambda: query(engine, renewed, lease=chunk["lease_until"]), "a lease that would have run out")
    site.release()
    until(lambda: read_chunk(engine, messages[0].chunk_id)["status"] == "completed", "the straggler")
    assert read_job(engine, job.id)["valid_images"] == 11
    until(lambda: presence.ASIDE[0] == 0, "nothing aside")
    check_books(engine)


def test_without_another_chunk_the_child_stays(engine, child, site, tmp_path) -> None:
    """Nobody waits for the child, so it waits for the straggler."""
    job_of(engine, [f"{site.url}/free/0", f"{site.url}/held/0"], (tmp_path / "images").as_uri())
    [message] = queue_ready(engine)
    crawling = begin(child, message)
    until(
        lambda: site.waiting and query(engine, "SELECT 1 FROM job_chunks WHERE accepted = 1"), "a checkpoint"
    )
    assert not crawling.done()
    assert not child.aside_chunks
    site.release()
    crawling.result(20)
    assert read_chunk(engine, message.chunk_id)["accepted"] == 2


def test_what_is_aside_is_handed_back_by_a_child_that_ends(
    engine, settings, site, tmp_path, monkeypatch
) -> None:
    """Its outcomes stay, no lease is lost, and another child goes on with the straggler."""
    monkeypatch.setattr(presence, "ASIDE", mmap.mmap(-1, 8))
    _, messages = queue_pair(engine, site, tmp_path)
    leaving = Child(settings)
    crawl(leaving, messages[0])
    until(lambda: site.waiting == 1 and leaving.running == 1, "a straggler")
    assert leaving.aside_chunks
    leaving.close()
    chunk = read_chunk(engine, messages[0].chunk_id)
    assert (chunk["status"], chunk["accepted"], chunk["retry_count"]) == ("pending", 5, 0)
    site.release()
    other = Child(settings)
    [message] = queue_ready(engine)
    crawl(other, message)
    other.close()
    assert read_chunk(engine, messages[0].chunk_id)["accepted"] == 6


KILLED = """
import os, signal, sys
from models.settings import read_settings
from worker.child import Child
from worker.crawl import crawl_chunk

child = Child(read_settings())
for message in sys.argv[1:]:
    child.run(crawl_chunk(child, *map(int, message.split("."))))
assert len(child.aside_chunks) == len(sys.argv) - 1
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_is_killed_costs_each_chunk_aside_one_loss(
    engine, settings, child, site, tmp_path
) -> None:
    """Their leases are lost together, each is rescued once and run carefully once, and no candidate is to blame."""
    urls = [f"{site.url}/{'held' if number % 6 == 5 else 'free'}/{number}" for number in range(18)]
    job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=6)
    *lost, waiting = queue_ready(engine)
    command = [sys.executable, "-c", KILLED, *(f"{message.chunk_id}.{message.attempt}" for message in lost)]
    assert subprocess.run(command, env=settings.environment(), check=False).returncode == -signal.SIGKILL
    change(engine, "UPDATE job_chunks SET lease_until = now() - interval '1 s' WHERE status = 'processing'")
    with transaction(engine) as session:
        assert {rescue_chunk(session, 1).chunk_id for _ in lost} == {message.chunk_id for message in lost}
        assert rescue_chunk(session, 1) is None
    assert [read_chunk(engine, message.chunk_id)["retry_count"] for message in lost] == [1, 1]
    site.release()
    for message in [waiting, *queue_ready(engine)]:
        crawl(child, message)
    row = read_job(engine, job.id)
    assert (row["valid_images"], row["failures"], row["completed_chunks"]) == (18, {}, 3)
    assert [read_chunk(engine, message.chunk_id)["attempt"] for message in lost] == [2, 2]
    check_books(engine)


def test_a_chunk_that_lost_its_worker_keeps_its_child(engine, child, site, tmp_path) -> None:
    """What killed one worker must not take other chunks with it."""
    _, messages = queue_pair(engine, site, tmp_path)
    change(engine, "UPDATE job_chunks SET retry_count = 1")
    crawling = begin(child, messages[0])
    done = "SELECT 1 FROM job_chunks WHERE accepted = 5 AND status = 'processing'"
    until(lambda: site.waiting and query(engine, done), "a straggler")
    assert not child.aside_chunks
    site.release()
    crawling.result(20)


def test_no_more_go_aside_than_a_child_can_look_after(child) -> None:
    """The number is counted where the parent reads it."""

    async def wait() -> None:
        tasks = [asyncio.ensure_future(asyncio.sleep(0)) for _ in range(ASIDE_MAX)]
        for task in tasks:
            child.go_on_aside(task)
        assert presence.ASIDE[0] == ASIDE_MAX
        await asyncio.gather(*tasks)

    child.run(wait())
    until(lambda: presence.ASIDE[0] == 0, "nothing aside")


def test_stragglers_hold_no_connection_of_the_next_chunk(
    engine, settings, site, tmp_path, monkeypatch
) -> None:
    """A child with one transfer at once has one for each chunk: what is aside does not count."""
    monkeypatch.setattr(presence, "ASIDE", mmap.mmap(-1, 8))
    _, messages = queue_pair(engine, site, tmp_path)
    child = Child(settings.model_copy(update={"transfers": 1, "read_seconds_max": 45}))
    try:
        crawl(child, messages[0])
        assert (site.waiting, len(child.aside_chunks)) == (1, 1)
        next_one = begin(child, messages[1])
        wait([next_one], timeout=30)  # A straggler would end by itself after 45 seconds.
        assert (next_one.done(), site.waiting) == (True, 1)
        assert read_chunk(engine, messages[1].chunk_id)["accepted"] == 5
    finally:
        site.release()
        until(lambda: not child.crawling, "the end of both")
        child.close()


def test_two_chunks_that_fill_a_child_together_wait_for_their_hosts(
    engine, settings, site, tmp_path, monkeypatch
) -> None:
    """Neither is more than half of the child, and both are, of more than stragglers: they go on like any other."""
    monkeypatch.setattr(presence, "ASIDE", mmap.mmap(-1, 8))
    urls = [f"{site.url}/held/{number}" for number in range(40)]
    job = new_crawl(engine, urls, (tmp_path / "images").as_uri(), chunk_size=20)
    messages = queue_ready(engine)
    child = Child(settings.model_copy(update={"transfers": 40}))
    try:
        ends = [begin(child, message) for message in messages]
        until(lambda: site.waiting == 40, "all transfers", 10)
        site.release()
        assert len(wait(ends, timeout=20).done) == 2
        until(lambda: not child.crawling, "the end of both")
        assert read_job(engine, job.id)["valid_images"] == 40
    finally:
        child.close()


def test_a_child_in_which_a_thread_hangs_ends_after_all_its_chunks(
    engine, child, site, tmp_path, monkeypatch
) -> None:
    """What is done in each of them is committed and handed back before: no lease is lost."""
    _, messages = queue_pair(engine, site, tmp_path, held=(5, 10))
    ends: list[tuple[int, list]] = []
    chunks = "SELECT status, accepted, retry_count FROM job_chunks ORDER BY id"
    monkeypatch.setattr(os, "_exit", lambda _: ends.append((child.crawling, query(engine, chunks))))
    crawl(child, messages[0])
    crawling = begin(child, messages[1])
    until(lambda: site.waiting == 2, "a straggler of each")
    with child.watchdog.timing(Work.STORE, 0):
        until(lambda: ends, "the end of the child")
    crawling.result(20)
    assert ends[0] == (0, [("pending", 5, 0), ("pending", 4, 0)])
