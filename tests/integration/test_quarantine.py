"""A chunk in quarantine, in a pool child's own process: who kills or stalls the helper has its outcome alone."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.database import transaction
from models.job_lifecycle import cancel_job
from models.settings import Settings, read_settings
from tests.support.crawling import NewJob, change, check_books, query, queue_ready, read_chunk, read_job
from tests.support.fleet import new_crawl
from tests.support.poison import PIXELS_MAX
from tests.support.processes import parent, until
from tests.support.site import Site
from worker import presence
from worker.child import Child
from worker.crawl import crawl_chunk
from worker.quarantine import QUARANTINE_LOSSES, Quarantine

OUTCOMES = "SELECT accepted + failed FROM job_chunks"


@pytest.fixture
def site():
    """A site with pictures of all kinds."""
    with Site() as opened:
        yield opened


@pytest.fixture
def settings(services, database_url, tmp_path) -> Settings:
    """Settings of a worker on this test's database; its one site stands for many hosts."""
    return read_settings(
        home=tmp_path,
        database_url=database_url,
        redis_url=services.redis_url,
        allowed_networks="127.0.0.0/8",
        lease_seconds=5,
        host_transfers=100,
        transfer_seconds_max=3,
    )


@pytest.fixture
def child(settings):
    """What a pool child has open. No helper of it is left at its end."""
    opened = Child(settings)
    yield opened
    opened.close()
    assert helpers() == []


def helpers() -> list[int]:
    """Helpers of this process that ask for candidates."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"worker.quarantine" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if parent(pid) == os.getpid()]


def asking_helper() -> int:
    """The one helper that there is. Found by its parent and not by its connection: a walk over the descriptors of
    every process takes longer, on a busy machine, than the helper's own time limit.
    """
    [pid] = helpers()
    return pid


def job_of(engine: Engine, site: Site, paths: list[str], store_url: str) -> NewJob:
    """A job of one chunk with these paths of the site, whose workers were lost."""
    job = new_crawl(engine, [f"{site.url}{path}" for path in paths], store_url)
    change(engine, "UPDATE job_chunks SET retry_count = :lost", lost=QUARANTINE_LOSSES)
    return job


def crawl(child: Child, engine: Engine) -> dict[str, object]:
    """Queue the chunk and crawl it: its row."""
    [message] = queue_ready(engine)
    child.run(crawl_chunk(child, message.chunk_id, message.attempt))
    check_books(engine)
    return read_chunk(engine, message.chunk_id)


def test_who_kills_the_helper_has_its_outcome(engine, child, site, tmp_path) -> None:
    """Two of six are worker_lost, and say by what; each outcome is committed before the next request."""
    committed = {}

    def look(path: str) -> None:
        [(outcomes,)] = query(engine, OUTCOMES)
        committed.setdefault(path, outcomes)  # What takes too long is asked for again.

    site.refuse = look
    site.strike = lambda _: os.kill(asking_helper(), signal.SIGSEGV)
    paths = ["/free/0", "/deadly/1", "/free/2", "/deadly/3", "/missing/4", "/free/5"]
    job = job_of(engine, site, paths, (tmp_path / "images").as_uri())
    chunk = crawl(child, engine)
    assert (chunk["status"], chunk["accepted"], chunk["failed"]) == ("completed", 3, 3)
    assert read_job(engine, job.id)["failures"] == {"worker_lost": 2, "http_status": 1}
    rows = query(engine, "SELECT position, detail FROM failures WHERE reason = 'worker_lost' ORDER BY 1")
    assert rows == [(place, "asking for it ended the helper with SIGSEGV") for place in (1, 3)]
    assert [committed[path] for path in paths] == list(range(6))


def test_what_stalls_the_helper_is_given_up(engine, child, site, tmp_path, monkeypatch) -> None:
    """A helper that does not answer within its bound is killed, and the next candidate has a new one."""
    monkeypatch.setattr("worker.quarantine.ANSWER_SECONDS_MAX", 1)
    stopped = []

    def stop(_: int) -> None:
        stopped.append(asking_helper())
        os.kill(stopped[0], signal.SIGSTOP)

    site.strike = stop
    job = job_of(engine, site, ["/free/0", "/deadly/1", "/free/2"], (tmp_path / "images").as_uri())
    assert crawl(child, engine)["accepted"] == 2
    assert query(engine, "SELECT position, reason, detail FROM failures") == [
        (1, "worker_lost", "asking for it took longer than 3 seconds")
    ]
    assert read_job(engine, job.id)["failures"] == {"worker_lost": 1}
    with pytest.raises(ProcessLookupError):
        os.kill(stopped[0], 0)


def test_a_picture_that_no_decoder_ends_is_given_up(engine, settings, site, tmp_path) -> None:
    """Fetched in one helper and decoded in another, which is killed."""
    child = Child(settings.model_copy(update={"decode_seconds_max": 1, "image_pixels_max": PIXELS_MAX}))
    try:
        job_of(engine, site, ["/free/0", "/slow/2880", "/free/2"], (tmp_path / "images").as_uri())
        assert crawl(child, engine)["accepted"] == 2
    finally:
        child.close()
    assert query(engine, "SELECT position, detail FROM failures") == [
        (1, "decoding it took longer than 1 seconds")
    ]


def test_a_helper_killed_between_two_candidates_costs_nobody(
    engine, child, site, tmp_path, monkeypatch
) -> None:
    """It is asked nothing then: another one goes on."""
    real = Quarantine.step
    killed = []

    async def step(self, visit):
        fetched = await real(self, visit)
        [helper] = helpers()
        killed.append(helper)
        os.kill(helper, signal.SIGKILL)
        until(lambda: parent(helper) is None or not self._helper.running, "its death")
        return fetched

    monkeypatch.setattr(Quarantine, "step", step)
    job_of(engine, site, [f"/free/{number}" for number in range(3)], (tmp_path / "images").as_uri())
    assert crawl(child, engine)["accepted"] == 3
    assert len(set(killed)) == 3


def test_signals_to_all_processes_are_not_for_a_helper(engine, child, site, tmp_path) -> None:
    """Ctrl-C and a container that stops reach it, too: its child decides what comes of them."""

    def signal_helper() -> None:
        until(lambda: site.waiting, "a picture that is waited for")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(helpers()[0], number)
        site.release()

    job_of(engine, site, ["/held/0"], (tmp_path / "images").as_uri())
    with ThreadPoolExecutor(1) as thread:
        signalled = thread.submit(signal_helper)
        assert crawl(child, engine)["accepted"] == 1
        signalled.result()


def test_a_helper_that_dies_with_its_worker_convicts_nobody(engine, child, site, tmp_path) -> None:
    """Whoever ends a worker with all its processes may kill the helper first: its death counts only when its child
    goes on.
    """

    def end(_: int) -> None:
        os.kill(asking_helper(), signal.SIGKILL)
        presence._told.set()

    site.strike = end
    job = job_of(engine, site, ["/deadly/0"], (tmp_path / "images").as_uri())
    try:
        chunk = crawl(child, engine)
    finally:
        presence._told.clear()
    assert (chunk["status"], chunk["failed"]) == ("pending", 0)
    assert read_job(engine, job.id)["failures"] == {}


def test_without_a_helper_a_chunk_is_parked(engine, child, site, tmp_path, monkeypatch) -> None:
    """A machine that can start none has no outcome to give: the chunk waits, and no loss is counted."""
    monkeypatch.setattr("worker.quarantine.START_SECONDS_MAX", 0)
    job_of(engine, site, ["/free/0"], (tmp_path / "images").as_uri())
    chunk = crawl(child, engine)
    assert (chunk["status"], chunk["retry_count"], chunk["failed"]) == ("pending", QUARANTINE_LOSSES, 0)
    assert chunk["available_at"] is not None


def test_a_host_that_asks_to_wait_is_waited_for(engine, child, site, tmp_path) -> None:
    """Retry-After is heeded as ever: the candidate that met it is asked for again, after its time."""
    refused_at = []

    def refuse(path: str) -> str | None:
        if path != "/free/1" or refused_at:
            return None
        refused_at.append(time.monotonic())
        return "1"

    site.refuse = refuse
    job_of(engine, site, ["/free/0", "/free/1", "/free/2"], (tmp_path / "images").as_uri())
    assert crawl(child, engine)["accepted"] == 3
    assert query(engine, "SELECT attempts FROM images ORDER BY position") == [(1,), (2,), (1,)]
    again = [at for at, path in site.log if path == "/free/1"][-1]
    assert again - refused_at[0] >= 1


def test_what_may_pass_is_tried_again(engine, child, site, tmp_path) -> None:
    """A site that has answered 503 is asked again, as without a helper."""

    def recover(path: str) -> None:
        if path == "/later/0":
            site.release()  # From its next answer on.

    site.refuse = recover
    job_of(engine, site, ["/later/0", "/free/1"], (tmp_path / "images").as_uri())
    assert crawl(child, engine)["accepted"] == 2
    assert query(engine, "SELECT attempts FROM images ORDER BY position") == [(2,), (1,)]


@pytest.mark.parametrize("how", ["cancelled", "leaving"])
def test_quarantine_ends_at_once(engine, child, site, tmp_path, monkeypatch, how) -> None:
    """While the helper waits for a picture, a cancelled job settles within two seconds, and a worker that is asked
    to leave hands its chunk back; no helper is left, and nobody is to blame.
    """
    paths = ["/free/0", "/held/1", "/free/2"]
    job = job_of(engine, site, paths, (tmp_path / "images").as_uri())
    change_of_mind = []

    def stop() -> None:
        until(lambda: site.waiting, "a picture that is waited for")
        change_of_mind.append(time.monotonic())
        if how == "leaving":
            presence._told.set()
            return
        with transaction(engine) as session:
            assert cancel_job(session, job.id)

    with ThreadPoolExecutor(1) as thread:
        stopped = thread.submit(stop)
        try:
            chunk = crawl(child, engine)
        finally:
            presence._told.clear()
        stopped.result()
    assert time.monotonic() - change_of_mind[0] < 2
    assert helpers() == []
    assert chunk["accepted"] == 1
    expected = {"cancelled": ("completed", {"cancelled": 2}), "leaving": ("pending", {})}[how]
    assert (chunk["status"], read_job(engine, job.id)["failures"]) == expected
