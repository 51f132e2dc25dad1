"""One chunk in a pool child's own process: what breaks off costs nobody else, and nothing is lost."""

import asyncio
import datetime
import hashlib
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from models.about import About
from models.candidates import pack_candidates
from models.credits import grant
from models.database import transaction
from models.ending import drain_cancelled
from models.job_lifecycle import cancel_job, unblock_jobs
from models.outcomes import Candidate
from models.queueing import Message
from models.retrying import TRANSIENT_FAILURES, retry_chunks
from models.settings import Settings, read_settings
from scheduler.progress import find_job
from tests.support.crawling import (
    balance_of,
    change,
    check_books,
    job_of,
    query,
    queue_ready,
    read_chunk,
    read_job,
)
from tests.support.poison import PIXELS_MAX
from tests.support.processes import until
from tests.support.site import Site, picture
from worker.child import Child
from worker.crawl import ChunkRun, crawl_chunk
from worker.endings import end_tasks
from worker.store import FolderStore
from worker.transport import GuardedTransport
from worker.watchdog import Work


@pytest.fixture
def site():
    """A site with held pictures."""
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
        image_pixels_max=PIXELS_MAX,
    )


@pytest.fixture
def child(settings):
    """What a pool child has open."""
    opened = Child(settings)
    yield opened
    opened.close()


def crawl(child: Child, engine) -> int:
    """Queue the chunk and crawl it; its id."""
    [message] = queue_ready(engine)
    child.run(crawl_chunk(child, message.chunk_id, message.attempt))
    return message.chunk_id


def test_a_chunk_is_crawled_to_its_end(engine, child, site, tmp_path) -> None:
    """Images are stored, failures named, the hold settled."""
    urls = [f"{site.url}/free/{number}" for number in range(5)] + [f"{site.url}/missing/0", "no URL"]
    job = job_of(engine, urls, (tmp_path / "images").as_uri())
    chunk = read_chunk(engine, crawl(child, engine))
    assert (chunk["status"], chunk["accepted"], chunk["failed"]) == ("completed", 5, 2)
    assert read_job(engine, job.id)["failures"] == {"http_status": 1, "invalid_url": 1}
    assert len(list((tmp_path / "images").iterdir())) == 5
    went = "SELECT DISTINCT http_status, attempts, elapsed_ms >= 0 FROM"
    assert query(engine, f"{went} images") == [(200, 1, True)]
    assert query(engine, f"{went} failures ORDER BY 1") == [(404, 1, True), (None, None, None)]
    check_books(engine)


def test_what_is_known_of_a_candidate_is_held_to_and_kept(engine, child, site, tmp_path) -> None:
    """Other bytes than its digest's are a mismatch, a second URL is not fetched, an image's row says the rest."""
    urls = [f"{site.url}/free/{number}" for number in range(3)]
    job = job_of(engine, urls, (tmp_path / "images").as_uri())
    digest = f"sha1:{hashlib.sha1(picture(0), usedforsecurity=False).hexdigest()}"
    about = About(
        "owl", "http://page.test/", "p" * 60, "CC0", "A\0nn", {"caption": "\ud800\0", "ids": [1, math.nan]}
    )
    candidates = [
        Candidate(0, urls[0], 2, about, digest=digest),
        Candidate(1, urls[1], 3, digest=digest),
        Candidate(2, urls[0], 4, duplicate_of=0),
    ]
    change(engine, "UPDATE job_chunks SET candidates = :packed", packed=pack_candidates(candidates))
    chunk = read_chunk(engine, crawl(child, engine))
    assert (chunk["accepted"], read_job(engine, job.id)["failures"]) == (1, {"mismatch": 1, "duplicate": 1})
    names = "keyword, source_page, provider, licence, creator, metadata"
    row = ("owl", "http://page.test/", "p" * 50, "CC0", "A\ufffdnn", {"caption": "?\ufffd", "ids": [1, None]})
    assert query(engine, f"SELECT {names} FROM images") == [row]
    details = dict(query(engine, "SELECT position, detail FROM failures"))
    assert details[1].endswith(f", not {digest[5:]}")
    assert details[2] == "the same URL as candidate 0"
    assert query(engine, "SELECT attempts FROM failures ORDER BY position") == [(1,), (None,)]
    check_books(engine)


def test_a_worker_spends_a_short_hold_and_no_more(engine, child, site, tmp_path) -> None:
    """With credits for three images a chunk of eight is crawled three candidates at a time, and pays for three."""
    urls = [f"{site.url}/missing", *(f"{site.url}/free/{number}" for number in range(7))]
    job = job_of(engine, urls, (tmp_path / "images").as_uri(), balance=3)
    seen = []
    for _ in range(2):
        chunk = read_chunk(engine, crawl(child, engine))
        seen.append((chunk["status"], chunk["accepted"], chunk["failed"], chunk["retry_count"]))
        check_books(engine)
    assert seen == [("pending", 2, 1, 0), ("pending", 3, 1, 0)]
    assert queue_ready(engine) == []
    assert (balance_of(engine, job), read_job(engine, job.id)["blocked_reason"]) == (0, "out_of_credits")
    with transaction(engine) as session:
        grant(session, job.user_id, 10, description="More")
        unblock_jobs(session)
    assert read_chunk(engine, crawl(child, engine))["status"] == "completed"
    assert balance_of(engine, job) == 13 - 7
    assert len(list((tmp_path / "images").iterdir())) == 7
    check_books(engine)


def test_a_cancelled_chunk_with_a_short_hold_ends(engine, child, site, tmp_path) -> None:
    """The worker settles what it was given; the scheduler ends what the hold did not cover."""
    urls = [f"{site.url}/held/{number}" for number in range(5)]
    job = job_of(engine, urls, (tmp_path / "images").as_uri(), balance=2)

    def cancel_while_held() -> None:
        until(lambda: site.held_asked() == 2, "two pictures asked for")
        with transaction(engine) as session:
            assert cancel_job(session, job.id)

    with ThreadPoolExecutor(1) as thread:
        cancelled = thread.submit(cancel_while_held)
        chunk = read_chunk(engine, crawl(child, engine))
        cancelled.result()
    assert (chunk["status"], chunk["failed"], balance_of(engine, job)) == ("pending", 2, 2)
    with transaction(engine) as session:
        assert drain_cancelled(session, job.id) == 1
    assert read_job(engine, job.id)["failures"] == {"cancelled": 5}
    check_books(engine)


def test_what_failed_is_crawled_again_once_it_answers(engine, settings, site, tmp_path) -> None:
    """A site that answered 503 has recovered: its candidates become images, the others keep their outcomes."""
    kinds = ["free/1", "later/2", "missing/0", "later/1"]  # /later/1 will have the same bytes as /free/1.
    child = Child(settings.model_copy(update={"transfer_attempts": 1}))
    try:
        job = job_of(engine, [f"{site.url}/{kind}" for kind in kinds], (tmp_path / "images").as_uri())
        crawl(child, engine)
        assert read_job(engine, job.id)["failures"] == {"http_status": 3}
        site.release()
        with transaction(engine) as session:
            assert retry_chunks(session, job.id, TRANSIENT_FAILURES).reasons == {"http_status": 2}
        chunk = read_chunk(engine, crawl(child, engine))
    finally:
        child.close()
    assert (chunk["status"], chunk["accepted"], chunk["failed"], chunk["attempt"]) == ("completed", 2, 2, 2)
    assert query(engine, "SELECT position, reason FROM failures ORDER BY 1") == [
        (2, "http_status"),
        (3, "duplicate"),
    ]
    assert balance_of(engine, job) == 1000 - 2
    check_books(engine)


def test_without_its_store_a_chunk_is_parked(engine, child, site, tmp_path) -> None:
    """A store that cannot be written gives the chunk back for later: no outcome, no retry counted, hold kept."""
    (tmp_path / "file").write_text("in the way")
    job = job_of(engine, [f"{site.url}/free/1"], (tmp_path / "file" / "images").as_uri())
    chunk = read_chunk(engine, crawl(child, engine))
    assert (chunk["status"], chunk["retry_count"], chunk["failed"]) == ("pending", 0, 0)
    assert chunk["available_at"] > datetime.datetime.now(datetime.UTC)
    assert read_job(engine, job.id)["active_chunks"] == 0
    check_books(engine)


def test_a_chunk_whose_worker_was_lost_is_crawled_carefully(
    engine, settings, site, tmp_path, monkeypatch
) -> None:
    """The picture that no decoder ends is worker_lost; every other is accepted, and committed in small parts."""
    settings = settings.model_copy(update={"decode_seconds_max": 1})
    parts = []
    real = ChunkRun.commit

    async def commit(self, arrow):
        parts.append(len(arrow.keywords["outcomes"]))
        await real(self, arrow)

    monkeypatch.setattr(ChunkRun, "commit", commit)
    urls = [f"{site.url}/free/{number}" for number in range(60)]
    urls.insert(30, f"{site.url}/slow/2880")
    job_of(engine, urls, (tmp_path / "images").as_uri())
    change(engine, "UPDATE job_chunks SET retry_count = 1")
    child = Child(settings)
    try:
        chunk = read_chunk(engine, crawl(child, engine))
    finally:
        child.close()
    assert (chunk["status"], chunk["accepted"], chunk["failed"], chunk["retry_count"]) == (
        "completed",
        60,
        1,
        0,
    )
    failed = query(engine, "SELECT position, reason, detail FROM failures")
    assert failed == [(30, "worker_lost", "decoding it took longer than 1 seconds")]
    assert len(parts) > 1
    assert sum(parts) == 61
    check_books(engine)


def test_a_cancelled_chunk_does_not_wait_for_a_slow_picture(engine, child, site, tmp_path) -> None:
    """A cancelled job settles what is stored within two seconds, whatever the decoder is at."""
    urls = [f"{site.url}/slow/2200", *(f"{site.url}/held/{number}" for number in range(3))]
    job = job_of(engine, urls, (tmp_path / "images").as_uri())

    def cancel_while_decoding() -> float:
        until(lambda: Work.DECODE in child.watchdog.running(), "decoding")
        with transaction(engine) as session:
            assert cancel_job(session, job.id)
        began = time.monotonic()
        until(lambda: read_job(engine, job.id)["completed_chunks"], "the settlement")
        return time.monotonic() - began

    with ThreadPoolExecutor(1) as thread:
        settled = thread.submit(cancel_while_decoding)
        chunk = read_chunk(engine, crawl(child, engine))
        seconds = settled.result()
    assert child.watchdog.running() == set()  # The next chunk finds a decoder.
    assert (chunk["status"], chunk["accepted"], chunk["failed"]) == ("completed", 0, 4)
    assert read_job(engine, job.id)["failures"] == {"cancelled": 4}
    assert seconds < 2
    check_books(engine)


class DeadResolver(AbstractResolver):
    """A name server that never answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def resolve(self, *_: object, **__: object) -> list[ResolveResult]:
        """Wait for ever."""
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        """Nothing is open."""


def test_a_cancelled_chunk_does_not_wait_for_a_name_server(engine, child, settings, tmp_path) -> None:
    """Hundreds of lookups that hang are given up like any transfer."""
    job = job_of(engine, [f"http://{number}.images.test/" for number in range(300)], tmp_path.as_uri())
    resolver = DeadResolver()

    async def crawl_without_names(message: Message) -> None:
        child.transport = GuardedTransport(settings, resolver=resolver)
        await crawl_chunk(child, message.chunk_id, message.attempt)

    def cancel_while_resolving() -> float:
        until(lambda: resolver.asked >= 100, "lookups")
        with transaction(engine) as session:
            assert cancel_job(session, job.id)
        return time.monotonic()

    [message] = queue_ready(engine)
    with ThreadPoolExecutor(1) as thread:
        cancelled = thread.submit(cancel_while_resolving)
        child.run(crawl_without_names(message))
        assert time.monotonic() - cancelled.result() < 6  # A connect may take 10 seconds.
    assert read_job(engine, job.id)["failures"] == {"cancelled": 300}
    check_books(engine)


class BusyResolver(AbstractResolver):
    """A name server that knows no host of the domain ``gone.test``, and answers for no other one."""

    async def resolve(self, host: str, *_: object, **__: object) -> list[ResolveResult]:
        """Fail at once."""
        if host.endswith("gone.test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(("domain", "hint"), [("gone.test", "dead_links"), ("busy.test", "dns_overloaded")])
def test_names_that_are_gone_and_a_name_server_that_is_busy_are_told_apart(
    engine, settings, tmp_path, domain, hint
) -> None:
    """By what the resolver says: the first is an old list, the second wants fewer transfers. Both are met when the
    owner is to be asked, before any attempt at the picture.
    """
    job = job_of(engine, [f"http://{number}.{domain}/" for number in range(6)], tmp_path.as_uri())
    child = Child(settings.model_copy(update={"transfer_attempts": 2}))

    async def crawl_with_names(message: Message) -> None:
        child.transport = GuardedTransport(child.settings, resolver=BusyResolver())
        await crawl_chunk(child, message.chunk_id, message.attempt)

    [message] = queue_ready(engine)
    try:
        child.run(crawl_with_names(message))
    finally:
        child.close()
    rows = query(engine, "SELECT DISTINCT reason, attempts, elapsed_ms >= 0 FROM failures")
    assert rows == [("dns", None, None)]
    assert [hint["code"] for hint in find_job(engine, job.id)["hints"]] == [hint]


def test_what_nobody_expected_is_one_outcome(engine, child, site, tmp_path, monkeypatch) -> None:
    """A bug that one candidate meets ends that candidate; the others are accepted."""
    broken = f"{site.url}/free/3"
    real = Child.in_decoder

    async def in_decoder(self, function, child, store, candidate, *rest):
        if candidate.url == broken:
            raise ZeroDivisionError("a bug")
        return await real(self, function, child, store, candidate, *rest)

    monkeypatch.setattr(Child, "in_decoder", in_decoder)
    job = job_of(engine, [f"{site.url}/free/{number}" for number in range(5)], tmp_path.as_uri())
    chunk = read_chunk(engine, crawl(child, engine))
    assert (chunk["status"], chunk["accepted"], chunk["failed"]) == ("completed", 4, 1)
    assert read_job(engine, job.id)["failures"] == {"corrupt": 1}
    check_books(engine)


def test_a_chunk_that_breaks_off_is_rescued_at_once(engine, child, site, tmp_path, monkeypatch) -> None:
    """A bug around the whole chunk ends its lease now instead of when it would have run out."""

    async def sync(self, *_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Child, "aside", sync)
    job_of(engine, [f"{site.url}/free/1"], tmp_path.as_uri())
    chunk = read_chunk(engine, crawl(child, engine))
    assert chunk["status"] == "processing"
    assert chunk["lease_until"] <= datetime.datetime.now(datetime.UTC)


def test_the_lease_is_renewed_while_the_store_is_slow(engine, child, site, tmp_path, monkeypatch) -> None:
    """A store that takes long to be opened, or to sync, does not cost the chunk its lease."""
    seen = []
    real = Child.aside

    async def slow(self, function, *arguments):
        before = read_chunk(engine, 1)["lease_until"]
        released = threading.Event()

        def wait() -> None:
            deadline = time.monotonic() + 20
            while read_chunk(engine, 1)["lease_until"] == before and time.monotonic() < deadline:
                released.wait(0.05)

        await real(self, wait)
        seen.append(read_chunk(engine, 1)["lease_until"] > before)
        return await real(self, function, *arguments)

    monkeypatch.setattr(Child, "aside", slow)
    job_of(engine, [f"{site.url}/free/1"], tmp_path.as_uri())
    assert crawl(child, engine) == 1
    assert seen == [True, True]
    assert read_chunk(engine, 1)["status"] == "completed"


class LeftError(Exception):
    """The process would have ended here, and with it this test."""


def test_a_chunk_from_which_nothing_comes_is_given_up(engine, child, site, tmp_path, monkeypatch) -> None:
    """When all that a candidate may take is over without an outcome, the lease ends now, with what is done."""

    def leave() -> None:
        raise LeftError

    monkeypatch.setattr("worker.crawl.silence_seconds_max", lambda _: 3.0)
    monkeypatch.setattr("worker.child.leave_at_once", leave)
    job_of(engine, [f"{site.url}/free/1", f"{site.url}/held/1"], tmp_path.as_uri())
    with pytest.raises(LeftError):
        crawl(child, engine)
    chunk = read_chunk(engine, 1)
    assert (chunk["status"], chunk["accepted"]) == ("processing", 1)
    assert chunk["lease_until"] <= datetime.datetime.now(datetime.UTC)
    check_books(engine)


def test_a_sync_that_hangs_ends_its_process(engine, child, site, tmp_path, monkeypatch) -> None:
    """A disk that never finishes holds the chunk for as long as the store may take; then it waits for another
    worker, and what cannot be synced has no row.
    """
    hanging = threading.Event()

    def leave() -> None:
        raise LeftError

    monkeypatch.setattr("worker.crawl.FAREWELL_SECONDS", 0.5)
    monkeypatch.setattr("worker.child.leave_at_once", leave)
    monkeypatch.setattr(FolderStore, "sync", lambda _: hanging.wait(30))
    child.settings = child.settings.model_copy(update={"store_seconds_max": 1.0})
    job_of(engine, [f"{site.url}/free/1"], tmp_path.as_uri())
    try:
        with pytest.raises(LeftError):
            crawl(child, engine)
    finally:
        hanging.set()
    chunk = read_chunk(engine, 1)
    assert (chunk["status"], chunk["accepted"], chunk["retry_count"]) == ("pending", 0, 0)
    assert chunk["available_at"] is not None
    check_books(engine)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize(
    ("level", "failures", "sizes"),
    [
        ("full", {"corrupt": 2}, {(24, 16, 1)}),
        ("header", {"corrupt": 1}, {(24, 16, 1)}),
        ("none", {}, {(None, None, None)}),
    ],
)
def test_images_are_looked_at_as_closely_as_the_job_says(
    engine, child, site, tmp_path, level, failures, sizes, lost
) -> None:
    """What only decoding refuses passes by its header, a file that breaks off without any verification; what was
    not looked at is NULL. A careful worker judges alike, and so does one in quarantine.
    """
    urls = [f"{site.url}/{kind}/1" for kind in ("free", "garbled", "cut", "missing")]
    job = job_of(engine, urls, (tmp_path / "images").as_uri())
    change(engine, "UPDATE crawl_jobs SET verification = :level", level=level)
    change(engine, "UPDATE job_chunks SET retry_count = :lost", lost=lost)
    crawl(child, engine)
    assert read_job(engine, job.id)["failures"] == {"http_status": 1} | failures
    images = query(engine, "SELECT width, height, orientation, perceptual_hash, format FROM images")
    assert len(images) == 3 - sum(failures.values())
    assert {image[:3] for image in images} == sizes
    assert {image[4] for image in images} == {"png"}
    assert {image[3] is not None for image in images} == {level == "full"}
    check_books(engine)


def test_a_task_that_overhears_a_cancellation_ends_all_the_same() -> None:
    """A chunk whose worker leaves waits for all of its tasks: none may hold it up for ever."""
    heard = 0

    async def stubborn() -> None:
        nonlocal heard
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1
        await asyncio.Event().wait()

    async def run() -> None:
        tasks = [asyncio.ensure_future(stubborn()), asyncio.ensure_future(asyncio.sleep(60))]
        await asyncio.sleep(0)
        await asyncio.wait_for(end_tasks(tasks), 10)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(run())
    assert heard == 2
