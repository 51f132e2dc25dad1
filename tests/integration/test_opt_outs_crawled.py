"""A whole chunk on a site whose owners say no: the refused is not requested, not charged, and has its evidence."""

import datetime
from collections.abc import Sequence

import pytest
from sqlalchemy import Engine

from models.database import transaction
from models.retrying import TRANSIENT_FAILURES, retry_chunks
from models.settings import read_settings
from tests.support.crawling import (
    NewJob,
    balance_of,
    change,
    check_books,
    query,
    queue_ready,
    read_chunk,
    read_job,
)
from tests.support.crawling import job_of as job_of_urls
from tests.support.hostile_server import Server, by_path, response, serve
from tests.support.site import picture
from worker import cluster_memory, opt_outs, site_files
from worker.child import Child
from worker.crawl import crawl_chunk

ROBOTS, TDMREP = "/robots.txt", "/.well-known/tdmrep.json"
ANSWERS = {
    ROBOTS: response(b"# Owls\nUser-agent: *\nDisallow: /private/\n"),
    TDMREP: response(b'[{"location": "/mined/", "tdm-reservation": 1}]'),
    "/private/1": response(picture(1)),
    "/mined/2": response(picture(2)),
    "/noai/3": response(picture(3), headers={"X-Robots-Tag": "noai"}),
    "/tdm/4": response(picture(4), headers={"tdm-reservation": "1"}),
    "/free/5": response(picture(5)),
    "/free/6": response(picture(6)),
    "/go": response(status=302, headers={"Location": "/private/1"}),
}
PATHS = ["/private/1", "/mined/2", "/noai/3", "/tdm/4", "/free/5", "/free/6", "/go"]


@pytest.fixture
def child(database_url, redis_url, tmp_path):
    """What a pool child has open."""
    settings = read_settings(
        home=tmp_path,
        database_url=database_url,
        redis_url=redis_url,
        allowed_networks="127.0.0.0/8",
        opt_outs_ignorable="robots,x-robots-tag",
    )
    opened = Child(settings)
    yield opened
    opened.close()


def job_of(engine: Engine, server: Server, paths: Sequence[str], store_url: str) -> NewJob:
    """A job of one chunk with these paths of a site."""
    return job_of_urls(engine, [f"{server.origin}{path}" for path in paths], store_url)


async def crawl(child: Child, engine: Engine) -> None:
    """Queue the chunk and crawl it."""
    [message] = queue_ready(engine)
    await crawl_chunk(child, message.chunk_id, message.attempt)
    assert read_chunk(engine, message.chunk_id)["status"] == "completed"
    check_books(engine)


def asked(server: Server) -> list[str]:
    """What was requested, in no order."""
    return sorted(request.target for request in server.requests)


@pytest.mark.parametrize("lost", [0, 2])
def test_the_refused_are_neither_fetched_nor_charged(engine, child, tmp_path, lost) -> None:
    """The site's request log has what may be asked for and nothing else, the ledger the images and nothing else;
    so in quarantine.
    """

    async def run() -> None:
        async with serve(by_path(ANSWERS)) as server:
            job = job_of(engine, server, PATHS, (tmp_path / "images").as_uri())
            change(engine, "UPDATE job_chunks SET retry_count = :lost", lost=lost)
            await crawl(child, engine)
        assert asked(server) == sorted([ROBOTS, TDMREP, "/noai/3", "/tdm/4", "/free/5", "/free/6", "/go"])
        assert read_job(engine, job.id)["failures"] == {"robots": 2, "opt_out": 3}
        assert balance_of(engine, job) == 1000 - 2
        assert len(list((tmp_path / "images").iterdir())) == 2
        rows = query(
            engine, "SELECT position, reason, final_url, http_status, evidence FROM failures ORDER BY 1"
        )
        now = datetime.datetime.now(datetime.UTC)
        for row in rows:
            fetched_at = datetime.datetime.fromisoformat(row[4].pop("fetched_at"))
            assert now - datetime.timedelta(minutes=5) < fetched_at <= now
        origin = server.origin
        line = {
            "rule": "robots.txt",
            "source": origin + ROBOTS,
            "line": "Disallow: /private/",
            "line_number": 3,
        }
        rule = '{"location": "/mined/", "tdm-reservation": 1}'
        noai = {"rule": "x-robots-tag", "source": f"{origin}/noai/3", "line": "X-Robots-Tag: noai"}
        header = {"rule": "tdm-header", "source": f"{origin}/tdm/4", "line": "tdm-reservation: 1"}
        mined = {"rule": "tdmrep.json", "source": origin + TDMREP, "line": rule}
        assert rows == [
            (0, "robots", f"{origin}/private/1", None, line | {"agent": "*"}),
            (1, "opt_out", f"{origin}/mined/2", None, mined | {"agent": "*"}),
            (2, "opt_out", f"{origin}/noai/3", 200, noai | {"agent": "*"}),
            (3, "opt_out", f"{origin}/tdm/4", 200, header | {"agent": "*"}),
            (6, "robots", f"{origin}/private/1", None, line | {"agent": "*"}),
        ]

    child.run(run())


@pytest.mark.parametrize("lost", [0, 2])
def test_evidence_may_have_any_bytes(engine, child, tmp_path, lost) -> None:
    """A header that is no text stops nobody, in this process or on its way from a helper."""

    async def run() -> None:
        headers = {"X-Robots-Tag": "noai, \xff"}
        async with serve(by_path({"/1": response(picture(1), headers=headers)})) as server:
            job_of(engine, server, ["/1"], (tmp_path / "images").as_uri())
            change(engine, "UPDATE job_chunks SET retry_count = :lost", lost=lost)
            await crawl(child, engine)
        lines = query(engine, "SELECT reason, evidence->>'line' FROM failures")
        assert lines == [("opt_out", "X-Robots-Tag: noai, ?")]

    child.run(run())


@pytest.mark.parametrize("lost", [0, 2])
def test_a_job_ignores_what_both_it_and_the_operator_name(engine, child, tmp_path, lost) -> None:
    """The job names all three, the worker's operator allows two: tdm is obeyed, the others are not asked for."""

    async def run() -> None:
        async with serve(by_path(ANSWERS)) as server:
            job = job_of(engine, server, PATHS, (tmp_path / "images").as_uri())
            change(engine, """UPDATE crawl_jobs SET ignored_opt_outs = '["robots", "tdm", "x-robots-tag"]'""")
            change(engine, "UPDATE job_chunks SET retry_count = :lost", lost=lost)
            await crawl(child, engine)
        assert ROBOTS not in asked(server)
        assert read_job(engine, job.id)["failures"] == {"opt_out": 2, "duplicate": 1}
        assert balance_of(engine, job) == 1000 - 4

    child.run(run())


def test_a_site_that_could_not_be_asked_is_tried_again(engine, child, tmp_path, monkeypatch) -> None:
    """With its robots.txt away nothing of it is requested; `retry` takes all of it once that is back."""
    monkeypatch.setattr(site_files, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(cluster_memory, "KNOWN_SECONDS_MIN", 0.0)
    monkeypatch.setattr(opt_outs, "UNREACHABLE_SECONDS", 0)
    answers = ANSWERS | {ROBOTS: response(b"", 503)}

    async def run() -> None:
        async with serve(by_path(answers)) as server:
            job = job_of(engine, server, ["/free/5", "/free/6"], (tmp_path / "images").as_uri())
            await crawl(child, engine)
            assert set(asked(server)) == {ROBOTS}
            assert read_job(engine, job.id)["failures"] == {"robots": 2}
            assert query(engine, "SELECT DISTINCT evidence->>'unreachable', detail FROM failures") == [
                (
                    "the server answered 503",
                    f"{server.origin}{ROBOTS} cannot be read: the server answered 503",
                )
            ]
            answers[ROBOTS] = ANSWERS[ROBOTS]
            with transaction(engine) as session:
                assert retry_chunks(session, job.id, TRANSIENT_FAILURES).reasons == {"robots": 2}
            await crawl(child, engine)
        assert (read_job(engine, job.id)["valid_images"], balance_of(engine, job)) == (2, 1000 - 2)

    child.run(run())
