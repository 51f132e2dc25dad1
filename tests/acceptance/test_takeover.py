"""Two schedulers with the settings of production: the one that leads is killed or stopped, the other takes over."""

import signal
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.support.crawling import NewJob, check_books, query, read_chunk
from tests.support.fleet import Fleet, ended, kill, new_crawl, said
from tests.support.processes import Command, until
from tests.support.site import Site
from worker.writing import BACKOFF_SECONDS_MAX

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stops processes by signals")
HOLDERS = """SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


def leading(schedulers: list[Command]) -> list[Command]:
    """Who has said that it leads, and nothing since."""
    return [each for each in schedulers if said(each, "leader") > said(each, "database_away")]


def test_a_standby_takes_over_within_ten_seconds(engine, services, database_url, tmp_path) -> None:
    """A stopped leader is replaced when its session has been idle for too long; continued, it has nothing to write
    with, stands by, and does not crash. A killed leader is replaced at once, here by the one that was stopped.
    """
    with Site() as site, Fleet(tmp_path, database_url, services.redis_url) as fleet:
        both = [fleet.scheduler(), fleet.scheduler()]
        until(lambda: len(leading(both)) == 1 and any(said(each, "standby") for each in both), "a leader")
        [old] = leading(both)
        [other] = [each for each in both if each is not old]
        fleet.worker()

        job = forty_pictures(engine, site, tmp_path / "stopped")
        replaced(engine, old, other, signal.SIGSTOP)
        lines = old.errors.count("\n")
        old.interrupt(signal.SIGCONT)
        until(lambda: said(old, "standby") >= 1, "a standby", 20)
        written = old.errors.split("\n")[lines:]
        assert not [line for line in written if "job_" in line or "chunk_" in line], written
        assert old.process.poll() is None
        assert ended(engine, job)["valid_images"] == 40

        job = forty_pictures(engine, site, tmp_path / "killed")
        replaced(engine, other, old, signal.SIGKILL)
        kill(other)
        assert ended(engine, job)["valid_images"] == 40
        assert (said(old, "leader"), said(other, "leader")) == (2, 1)
    check_books(engine)


def forty_pictures(engine: Engine, site: Site, folder: Path) -> NewJob:
    """A job of forty chunks of one picture each."""
    return new_crawl(engine, [f"{site.url}/free/{place}" for place in range(40)], folder.as_uri(), 1)


def replaced(engine: Engine, leader: Command, standby: Command, number: signal.Signals) -> None:
    """Signal the leader, and see that the one that stands by has its lock in time."""
    holder, before = query(engine, HOLDERS), said(standby, "leader")
    leader.interrupt(number)
    began = time.monotonic()
    until(lambda: said(standby, "leader") > before, "a new leader", 20)
    assert time.monotonic() - began < 10
    assert query(engine, HOLDERS) not in ([], holder)


STOPPED = """
import signal, sys
from sqlalchemy import text
from models.database import make_engine
with make_engine(sys.argv[1], application_name="pixtrawl worker").connect() as connection:
    connection.execute(text("SELECT FROM crawl_jobs FOR NO KEY UPDATE"))
    print("held", flush=True)
    signal.pause()
"""


def test_a_worker_stopped_inside_a_transaction_blocks_nobody_for_long(
    engine, services, database_url, tmp_path
) -> None:
    """A process that is stopped while it holds a job's row loses its session within ten seconds, and all go on."""
    with Site() as site, Fleet(tmp_path, database_url, services.redis_url) as fleet:
        scheduler, _ = fleet.both()
        urls = [f"{site.url}/held/{place}" for place in range(10)]
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri())
        until(lambda: site.waiting == 10, "transfers")
        program = [sys.executable, "-c", STOPPED]
        with Command(tmp_path / "stopped", fleet.shell, database_url, program=program) as holder:
            until(lambda: "held" in holder.output, "the lock")
            holder.interrupt(signal.SIGSTOP)
            began = time.monotonic()
            site.release()
            row = ended(engine, job)
            assert time.monotonic() - began < 10 + BACKOFF_SECONDS_MAX
            assert (row["status"], row["valid_images"]) == ("completed", 10)
            assert read_chunk(engine, job.chunk_ids[0])["attempt"] == 1
            assert said(scheduler, "chunk_rescued") == 0
    check_books(engine)
