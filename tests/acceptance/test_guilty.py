"""Candidates that kill whoever asks for them cost themselves; whoever kills workers from outside costs nobody."""

import datetime
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from chaos.processes import owner_of_port
from tests.support.crawling import NewJob, change, check_books, query, read_job
from tests.support.fleet import Fleet, children_of, ended, new_crawl, said
from tests.support.processes import parent, processes_of, until
from tests.support.site import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
DEADLY = (7, 23, 41)
KILLS = 4
LOST = """UPDATE job_chunks SET retry_count = 1, lease_until = now() - interval '1 s' WHERE status = 'processing'"""


@pytest.fixture
def site():
    """A site with pictures, some of them deadly."""
    with Site() as opened:
        yield opened


def helpers(fleet: Fleet) -> list[int]:
    """Helpers of its workers that ask for candidates."""
    words = processes_of(fleet.folder / "home")
    return [pid for pid, arguments in words.items() if "worker.quarantine" in arguments]


def quarantined(engine: Engine, urls: list[str], folder: Path) -> NewJob:
    """A job of one chunk that has lost its workers before."""
    now = datetime.datetime.now(datetime.UTC)
    job = new_crawl(engine, urls, (folder / "images").as_uri(), paused_at=now)
    change(engine, "UPDATE job_chunks SET retry_count = 2")
    change(engine, "UPDATE crawl_jobs SET paused_at = NULL")
    return job


def test_three_deadly_candidates_of_fifty_cost_three(engine, services, database_url, site, tmp_path) -> None:
    """Whatever process asks for one of three URLs is killed: exactly these are worker_lost, for two workers."""
    with Fleet(tmp_path, database_url, services.redis_url, lease_seconds=3, chunk_size=50) as fleet:
        scheduler, _ = fleet.both()
        site.strike = lambda port: os.kill(owner_of_port(port), signal.SIGKILL)
        urls = [f"{site.url}/{'deadly' if place in DEADLY else 'free'}/{place}" for place in range(50)]
        job = new_crawl(engine, urls, (tmp_path / "images").as_uri())
        row = ended(engine, job, seconds=180)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 47, {"worker_lost": 3})
        assert query(engine, "SELECT position, detail FROM failures ORDER BY 1") == [
            (place, "asking for it ended the helper with SIGKILL") for place in DEADLY
        ]
        assert said(scheduler, "chunk_rescued") <= 2 + len(DEADLY)
    check_books(engine)


def test_workers_killed_from_outside_convict_nobody(engine, services, database_url, site, tmp_path) -> None:
    """Four times the pool child is killed while its chunk is in quarantine and a picture is asked for: all are
    accepted, and no helper outlives its child.
    """
    with Fleet(tmp_path, database_url, services.redis_url) as fleet:
        scheduler, worker = fleet.both()
        left, killed = [], []

        def look(path: str) -> None:
            if not path.startswith("/free/") or not left:
                return
            left[0] -= 1
            if not left[0]:
                [helper] = [pid for pid in helpers(fleet) if parent(pid) in children_of(worker)]
                killed.append(parent(helper))
                os.kill(killed[-1], signal.SIGKILL)
                left.clear()

        site.refuse = look
        job = quarantined(engine, [f"{site.url}/free/{number}" for number in range(50)], tmp_path)
        for kill in range(KILLS):
            left.append(1 + kill % 3)
            until(lambda: not left, "a kill")
            change(engine, LOST)
        row = ended(engine, job)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 50, {})
        assert len(set(killed)) == said(scheduler, "chunk_rescued") == KILLS
        until(lambda: not helpers(fleet), "the end of all helpers", 5)
    check_books(engine)


def test_a_worker_that_leaves_in_quarantine_hands_its_chunk_back(
    engine, services, database_url, site, tmp_path
) -> None:
    """A helper that waits for a picture ends with a child that is killed. SIGTERM to every process of the group, as
    a container engine may send it, hands the chunk back within five seconds, nobody is to blame, and another worker
    ends it.
    """
    with Fleet(tmp_path, database_url, services.redis_url) as fleet:
        scheduler, worker = fleet.both()
        urls = [f"{site.url}/{kind}/1" for kind in ("free", "held")]
        job = quarantined(engine, urls, tmp_path)
        until(lambda: site.waiting, "a picture that is waited for")
        [helper] = helpers(fleet)
        os.kill(parent(helper), signal.SIGKILL)
        until(lambda: not helpers(fleet), "the end of the helper", 5)
        change(engine, LOST)
        until(lambda: helpers(fleet) and site.waiting, "the same again")
        began = time.monotonic()
        os.killpg(worker.process.pid, signal.SIGTERM)
        until(lambda: read_job(engine, job.id)["active_chunks"] == 0, "the chunk handed back", 10)
        assert time.monotonic() - began < 5
        site.release()
        assert worker.wait(10) == 0
        fleet.worker()
        row = ended(engine, job)
        assert (row["status"], row["valid_images"], row["failures"]) == ("completed", 2, {})
        assert said(scheduler, "chunk_rescued") == 1
    check_books(engine)
