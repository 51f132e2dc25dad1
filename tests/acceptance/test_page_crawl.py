"""A crawl by pages with a real scheduler and real workers, one of which is killed while it reads."""

import json
import os
import signal

from tests.support.crawling import check_books, new_job, query, read_job
from tests.support.fleet import Fleet, ended
from tests.support.linked_site import Answer, LinkedSite
from tests.support.processes import call, environment, until

IMAGES = ["home", "wide", "top", "bottom", "lazy", "back", "social", "data", "deep", "noscript", "last"]
"""What the site shows within its scope; nothing else may be found."""
HOME = """<title>Birds</title><base href="/birds/"><meta property="og:image" content="/img/social.png">
<img src="/img/home.png" alt="Home"><img src="/img/small.png" srcset="/img/wide.png 1600w, /img/small.png 400w">
<picture><source srcset="/img/top.png 2x, /img/small.png"><img src="/img/bottom.png"></picture>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="/img/lazy.png">
<noscript><img src="/img/noscript.png"></noscript>
<p style="background-image: url('/img/back.png')"></p>
<script type="application/ld+json">{"@graph": [{"@type": "ImageObject", "contentUrl": "/img/data.png"}]}</script>
<a href="deep?sid=1">deep</a> <a href="deep?sid=2&amp;utm_source=x">again</a> <a href="/calendar/1">days</a>
<a href="/private/x">no</a> <a href="/nofollow" rel="nofollow">no</a> <a href="http://127.0.0.2:9/">away</a>
<a href="/moved">moved</a> <a href="/noai">noai</a> <a href="/broken">broken</a> <a href="/file.pdf">pdf</a>"""
ANSWERS = {
    "/": HOME,
    "/robots.txt": Answer("User-agent: *\nDisallow: /private\n", "text/plain"),
    "/birds/deep?sid=1": "<img src=/img/deep.png><img src=/img/home.png><a href=/>home</a>",
    "/moved": Answer(status=302, headers={"Location": "/last"}),
    "/last": "<img src=/img/last.png>",
    "/noai": "<meta name=robots content=noai><img src=/img/never.png>",
    "/private/x": "<img src=/img/private.png>",
    "/nofollow": "<img src=/img/nofollow.png>",
    "/broken": Answer(status=500),
    "/file.pdf": Answer(b"%PDF", "application/pdf"),
}
FAILED = {"http_status": 1, "not_a_page": 1, "robots": 1}


def calendar(path: str) -> str | None:
    """Days without end, each with the picture of the home page."""
    if not path.startswith("/calendar/"):
        return None
    day = int(path.rpartition("/")[2])
    return "<img src=/img/home.png>" + "".join(f"<a href=/calendar/{day + more}>x</a>" for more in range(60))


def test_a_worker_killed_while_it_reads_costs_a_repeat_of_its_step(
    engine, services, database_url, redis_url, tmp_path
) -> None:
    """The worker is killed while one of two pages is held, and a calendar has no end: the job has exactly the
    images of the site, each once.
    """
    with (
        LinkedSite(ANSWERS, calendar) as site,
        Fleet(tmp_path, database_url, redis_url, {}, lease_seconds=3) as fleet,
    ):
        site.held = {"/last"}
        fleet.scheduler()
        fleet.worker(1)
        fleet.worker(1)
        source = {"pages": [f"{site.url}/", f"{site.url}/last"], "depth": 100}
        job = new_job(
            engine,
            [],
            source_kind="pages",
            source_state="splitting",
            source=source | {"max_pages": 10_000, "max_host_pages": 10_000},
            max_images=10_000,
            store_url=(tmp_path / "images").as_uri(),
        )
        until(lambda: site.asked("/last"), "a worker that reads")
        worker = read_job(engine, job.id)["source_worker"]
        os.kill(int(worker.partition("/")[2]), signal.SIGKILL)
        until(lambda: len(site.asked("/last")) > 1, "another worker that reads")
        site.release()
        row = ended(engine, job)
        urls = query(engine, "SELECT original_url FROM images ORDER BY 1")
        assert [url for (url,) in urls] == sorted(f"{site.url}/img/{name}.png" for name in IMAGES)
        assert not [
            path for path in site.asked() if "never" in path or path.startswith(("/private", "/nofollow"))
        ]
    assert (row["status"], row["total_images"], row["failed_images"]) == ("completed", len(IMAGES), 0)
    assert row["source_detail"] == (
        "every page within depth 100 was read; 3 could not be; endless ones were left"
    )
    check_books(engine)


def test_one_command_crawls_a_site(tmp_path) -> None:
    """``run --page`` ends with the images of a site and says what became of its pages."""
    shell = environment(tmp_path / "home", host_transfers=500)
    with LinkedSite(ANSWERS) as site:
        words = ("run", "--page", f"{site.url}/", "--depth", 3, "--exclude", "/calendar/*")
        first = call(tmp_path, shell, *words, "--json")
    assert first.process.returncode == 0, first.errors
    job = json.loads(first.output)
    assert (job["status"], job["valid_images"]) == ("completed", len(IMAGES))
    assert job["source_detail"] == "every page within depth 3 was read; 3 could not be"
    assert job["pages"] == {
        "known": 8,
        "pending": 0,
        "read": 4,
        "images_refused": 1,
        "redirected": 1,
        "failed": FAILED,
    }
