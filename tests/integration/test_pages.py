"""A crawl by pages, step by step in a pool child's own process, against a real site with its traps."""

import gzip
import time

import pytest

from models.candidates import unpack_candidates
from models.database import transaction
from models.ending import drain_cancelled
from models.frontier import Tries, count_patterns, release_pages, take_pages
from models.job_lifecycle import cancel_job, close_job
from models.jobs import SourceKind
from models.page_counts import count_pages
from models.retrying import ALL_FAILURES, TRANSIENT_FAILURES
from models.settings import read_settings
from models.splitting import abandon_source
from scheduler.retry import retry
from tests.support.crawling import change, query, read_job
from tests.support.linked_site import Answer, LinkedSite
from tests.support.sources import job_of_shelf
from worker.address import parse_url
from worker.child import Child
from worker.discover import LostStepError, StepRun, make_step
from worker.sources.page_url import page_pattern

STEPS_MAX = 60


@pytest.fixture
def child(services, database_url, tmp_path):
    """What a pool child has open; it may go to this machine's own servers."""
    settings = read_settings(
        home=tmp_path,
        database_url=database_url,
        redis_url=services.redis_url,
        allowed_networks="127.0.0.0/8",
        opt_outs_ignorable="x-robots-tag,tdm",
        transfer_seconds_max=5,
        host_transfers=20,
    )
    opened = Child(settings)
    yield opened
    opened.close()


def new_crawl(engine, pages, **more):
    """A job of these pages, of which nothing was read yet."""
    columns = {name: more.pop(name) for name in ("max_images", "ignored_opt_outs") if name in more}
    source = {"pages": pages, "depth": 3, "max_pages": 10_000, "max_host_pages": 10_000} | more
    return job_of_shelf(
        engine, source_kind=SourceKind.PAGES, source=source, **({"max_images": 10_000} | columns)
    )


def crawl(child, engine, job) -> dict:
    """Make steps until the source ends; the job's row."""
    for _ in range(STEPS_MAX):
        row = read_job(engine, job.id)
        if row["source_state"] != "splitting":
            return row
        change(engine, "UPDATE crawl_jobs SET source_available_at = NULL, source_wait = NULL")
        child.run(make_step(child, job.id, row["source_step"]))
    raise AssertionError("the source did not end")


def found(engine, job) -> list:
    """Every candidate of a job, in order."""
    rows = query(
        engine,
        "SELECT candidates, CAST(image_range->>'start' AS int) FROM job_chunks WHERE job_id = :id ORDER BY 2",
        id=job.id,
    )
    return [candidate for packed, start in rows for candidate in unpack_candidates(bytes(packed), start)]


def names(engine, job, site) -> list[str]:
    """The candidates of a job without the site, sorted."""
    return sorted(candidate.url.removeprefix(site.url) for candidate in found(engine, job))


def counts(engine, job) -> dict:
    """The pages of a job by what became of them."""
    with transaction(engine) as session:
        return count_pages(session, job.id).document


def page(*names: str, links=(), head="") -> str:
    """A page that shows these pictures and links to these places."""
    shown = "".join(f"<img src='/img/{name}' alt='{name}'>" for name in names)
    return f"<head><title>T</title>{head}</head>{shown}" + "".join(
        f"<a href='{link}'>x</a>" for link in links
    )


def calendar(path: str) -> str | None:
    """A month that links to the next one, and to each of its views, without end."""
    if not path.startswith("/calendar/"):
        return None
    number = int(path.split("/")[2].partition("?")[0])
    return page("logo.png", links=[f"/calendar/{number + 1}", f"/calendar/{number}?view={number}", "/"])


ANSWERS = {
    "/": page(
        "home.png", "logo.png", links=["/a/", "/b.html", "http://other.test/x", "/calendar/1", "/gone"]
    ),
    "/a/": page(
        "a.png", links=["deep", "../b.html?utm_source=x", "/a/;jsessionid=7", "/old", "/secret", "/a/pic"]
    ),
    "/a/deep": page("deep.png", links=["/a/deeper"]),
    "/a/deeper": page("deeper.png", links=["/a/deepest"]),
    "/a/deepest": page("deepest.png"),
    "/a/pic": Answer(b"\x89PNG...", "image/png"),
    "/b.html": page("b.png", head="<meta name=robots content=nofollow>", links=["/hidden"]),
    "/hidden": page("hidden.png"),
    "/old": Answer(status=301, headers={"Location": "/new"}),
    "/new": page("new.png", links=["/away", "/loop/1"]),
    "/away": Answer(status=302, headers={"Location": "http://other.test/"}),
    "/loop/1": Answer(status=302, headers={"Location": "/loop/2"}),
    "/loop/2": Answer(status=302, headers={"Location": "/loop/1"}),
    "/secret": page("secret.png", head="<meta name=robots content=noai>", links=["/beyond"]),
    "/beyond": page("beyond.png"),
    "/robots.txt": Answer("User-agent: *\nDisallow: /private\nSitemap: SITE/sitemap.xml\n", "text/plain"),
}


def test_a_site_is_crawled_to_its_depth(engine, child) -> None:
    """Exactly the images of the pages within the depth are found, each once, with its page and its text."""
    with LinkedSite(ANSWERS, calendar) as site:
        job = new_crawl(engine, [f"{site.url}/"], depth=2)
        row = crawl(child, engine, job)
        expected = "/a/pic /img/a.png /img/b.png /img/deep.png /img/home.png /img/logo.png /img/new.png"
        assert names(engine, job, site) == expected.split()
        for path in ("/a/", "/b.html", "/new", "/a/deep"):
            assert site.asked().count(path) == 1
        assert not site.asked("/hidden")
    assert row["source_detail"] == "every page within depth 2 was read; 1 could not be"
    assert counts(engine, job) == {
        "known": 12,
        "pending": 0,
        "read": 10,
        "images_refused": 1,
        "redirected": 1,
        "failed": {"http_status": 1},
    }
    about = {each.url.removeprefix(site.url): each.about for each in found(engine, job)}["/img/deep.png"]
    assert (about.source_page, about.metadata) == (
        f"{site.url}/a/deep",
        {"alt": "deep.png", "page_title": "T"},
    )


def test_redirects_and_nofollow(engine, child) -> None:
    """A redirect counts under where it leads, circles end, what is out of scope is not asked for, and a page whose
    images may not be taken is followed all the same.
    """
    with LinkedSite(ANSWERS) as site:
        job = new_crawl(engine, [f"{site.url}/old", f"{site.url}/secret"], depth=9)
        crawl(child, engine, job)
        assert names(engine, job, site) == ["/img/beyond.png", "/img/new.png"]
    rows = query(engine, "SELECT url, state, reason, detail FROM pages ORDER BY number")
    states = {url.removeprefix(site.url): (state, reason) for url, state, reason, _ in rows}
    assert states["/old"] == states["/away"] == states["/loop/1"] == ("redirected", None)
    assert states["/secret"] == ("read", "opt_out")
    [(evidence,)] = query(engine, "SELECT evidence FROM pages WHERE evidence IS NOT NULL")
    assert (evidence["rule"], evidence["line"]) == ("robots-meta", '<meta name="robots" content="noai">')
    assert "http://other.test/ is out of scope" in {detail for *_, detail in rows}


def test_a_start_may_lead_to_another_host(engine, child) -> None:
    """The page that was given may redirect to a host of its own; the crawl is then at home there, too."""
    with LinkedSite({"/": page("there.png", links=["/more"]), "/more": page("more.png")}) as there:
        moved = Answer(status=301, headers={"Location": f"{there.url}/"})
        with LinkedSite({"/": moved, "/x": page("x.png", links=[f"{there.url}/more"])}) as here:
            job = new_crawl(engine, [f"{here.url}/", f"{here.url}/x"])
            crawl(child, engine, job)
            found_there = [candidate.url for candidate in found(engine, job)]
    assert sorted(found_there) == sorted(
        [f"{here.url}/img/x.png", f"{there.url}/img/there.png", f"{there.url}/img/more.png"]
    )


def test_headers_of_pages(engine, child) -> None:
    """X-Robots-Tag speaks of a page's images and links, tdm-reservation of all of it; what may be ignored is."""
    answers = {
        "/": page(links=["/noindex", "/nofollow", "/tdm", "/bot"]),
        "/noindex": Answer(page("1.png", links=["/more"]), headers={"X-Robots-Tag": "noindex"}),
        "/nofollow": Answer(page("2.png", links=["/never"]), headers={"X-Robots-Tag": "nofollow"}),
        "/tdm": Answer(page("3.png"), headers={"tdm-reservation": "1"}),
        "/bot": Answer(page("4.png"), headers={"X-Robots-Tag": "otherbot: none"}),
        "/more": page("5.png"),
        "/never": page("6.png"),
    }
    with LinkedSite(answers) as site:
        job = new_crawl(engine, [f"{site.url}/"])
        crawl(child, engine, job)
        assert names(engine, job, site) == ["/img/2.png", "/img/4.png", "/img/5.png"]
        assert counts(engine, job)["failed"] == {"opt_out": 1}
        job = new_crawl(engine, [f"{site.url}/"], ignored_opt_outs=["x-robots-tag", "tdm"])
        crawl(child, engine, job)
        assert names(engine, job, site) == [f"/img/{number}.png" for number in range(1, 7)]


def test_sitemaps(engine, child) -> None:
    """What robots.txt names is read: an index, a compressed sitemap, and the images that it tells of."""
    image = "<image:image><image:loc>{0}/img/told.png</image:loc><image:title>Owl</image:title></image:image>"
    with LinkedSite(ANSWERS) as site:
        told_of = f"<url><loc>{site.url}/b.html</loc>{image.format(site.url)}</url>"
        entries = f"{told_of}<url><loc>http://other.test/</loc></url>"
        site.answers["/s.xml.gz"] = Answer(
            gzip.compress(f"<urlset>{entries}</urlset>".encode()), "application/x-gzip"
        )
        site.answers["/sitemap.xml"] = Answer(
            "<sitemapindex><sitemap><loc>SITE/s.xml.gz</loc></sitemap></sitemapindex>", "text/xml"
        )
        site.answers["/list.txt"] = Answer("SITE/a/deepest\n", "text/plain")
        job = new_crawl(engine, [f"{site.url}/a/deep", f"{site.url}/list.txt"], depth=0, sitemaps=True)
        crawl(child, engine, job)
        assert names(engine, job, site) == [
            "/img/b.png",
            "/img/deep.png",
            "/img/deepest.png",
            "/img/told.png",
        ]
    told = {each.url.removeprefix(site.url): each.about for each in found(engine, job)}["/img/told.png"]
    assert (told.source_page, told.metadata) == (f"{site.url}/b.html", {"title": "Owl"})


def test_a_calendar_ends(engine, child) -> None:
    """A site without end is left when a hundred of its pages in a row have brought nothing new."""

    def make(path: str) -> str | None:
        if not path.startswith("/day/"):
            return None
        number = int(path.split("/")[2].partition("?")[0])
        links = [f"/day/{number + more}" for more in range(40)] + [f"/day/{number}?view={number}"]
        return page("logo.png", links=links)

    with LinkedSite(
        {"/": page("logo.png", links=["/day/1", "/album/1"]), "/album/1": page("z.png")}, make
    ) as site:
        job = new_crawl(engine, [f"{site.url}/"], depth=1000)
        row = crawl(child, engine, job)
        assert names(engine, job, site) == ["/img/logo.png", "/img/z.png"]
        assert len(site.asked("/day/")) < 500
    assert row["source_detail"] == "every page within depth 1000 was read; endless ones were left"


@pytest.mark.parametrize(
    ("limits", "read", "detail"),
    [
        ({"max_pages": 7}, 7, "the limit of 7 pages is reached"),
        ({"max_host_pages": 5}, 5, "the limit of 5 pages of one host is reached"),
    ],
)
def test_limits(engine, child, limits, read, detail) -> None:
    """No more pages are known than a job may read, and it says so."""
    answers = {"/": page(links=[f"/{number}" for number in range(30)])}
    with LinkedSite(answers, lambda path: page(f"{path[1:]}.png") if path[1:].isdigit() else None) as site:
        job = new_crawl(engine, [f"{site.url}/"], **limits)
        assert crawl(child, engine, job)["source_detail"] == detail
        assert counts(engine, job)["read"] == read


NOTHING_READ = {
    "/loop/1": "SITE/loop/1 is redirected in a circle",
    "/none": "http_status 1; first SITE/none: the server answered 404",
    "/deep": "SITE/deep is redirected to SITE/a/a/a/a, which looks endless and is not followed",
    "/hops/0": "redirects 1; first SITE/hops/3: more than 3 redirects",
}


def test_a_crawl_that_reads_nothing_says_why(engine, child) -> None:
    """What was wrong with the first page, whether it failed or leads nowhere."""
    child.settings = child.settings.model_copy(update={"redirects_max": 3})

    def make(path: str) -> Answer | None:
        if path[:5] not in {"/deep", "/hops"}:
            return None
        target = "/a/a/a/a" if path == "/deep" else f"/hops/{int(path[-1]) + 1}"
        return Answer(status=302, headers={"Location": target})

    with LinkedSite(ANSWERS, make) as site:
        for path, detail in NOTHING_READ.items():
            row = crawl(child, engine, new_crawl(engine, [f"{site.url}{path}"]))
            assert row["source_detail"] == f"no page could be read: {detail.replace('SITE', site.url)}"


def test_pages_that_failed_are_read_again(engine, child, tmp_path) -> None:
    """For reasons that may pass, or all, once the source has ended; what they bring and link to is crawled."""
    child.settings = child.settings.model_copy(update={"transfer_attempts": 1})
    answers = {"/": page("home.png", links=["/busy", "/gone", "/never"]), "/busy": Answer(status=502)}
    answers |= {"/gone": Answer(status=404), "/never": Answer("%PDF", "application/pdf")}
    with LinkedSite(answers) as site:
        job = new_crawl(engine, [f"{site.url}/"])
        assert (
            crawl(child, engine, job)["source_detail"] == "every page within depth 3 was read; 3 could not be"
        )
        site.answers |= {"/busy": page("busy.png", "home.png", links=["/b"]), "/b": page("b.png")}
        site.answers["/gone"] = page("gone.png")

        def again(selection) -> int:
            return retry(engine, tmp_path.as_uri(), job.id, selection).pages

        asked = len(site.asked())
        assert again(TRANSIENT_FAILURES) == 1
        assert again(ALL_FAILURES) == 0
        assert read_job(engine, job.id)["status"] == "running"
        crawl(child, engine, job)
        assert sorted(site.asked()[asked:]) == ["/b", "/busy"]
        assert again(ALL_FAILURES) == 1
        row = crawl(child, engine, job)
        assert again(ALL_FAILURES) == 0
        assert names(engine, job, site) == [f"/img/{name}.png" for name in ("b", "busy", "gone", "home")]
    assert row["source_detail"] == "every page within depth 3 was read; 1 could not be"
    assert counts(engine, job)["failed"] == {"not_a_page": 1}


def test_a_cancelled_crawl_goes_on_with_its_pages(engine, child, tmp_path) -> None:
    """As it would have, when everything is tried again, and only then."""
    with LinkedSite({"/": page("home.png", links=["/b"]), "/b": page("b.png")}) as site:
        job = new_crawl(engine, [f"{site.url}/"])
        for step in range(2):
            child.run(make_step(child, job.id, step))
        with transaction(engine) as session:
            assert cancel_job(session, job.id)
            drain_cancelled(session, job.id)
            assert abandon_source(session) == job.id
            assert close_job(session) == job.id
        assert retry(engine, tmp_path.as_uri(), job.id, TRANSIENT_FAILURES).pages == 0
        assert retry(engine, tmp_path.as_uri(), job.id, ALL_FAILURES).pages == 1
        crawl(child, engine, job)
        assert names(engine, job, site) == ["/img/b.png", "/img/home.png"]


def test_no_more_images_than_wanted(engine, child) -> None:
    """What a page names beyond max_images stays with it, and is handed out when it is wanted after all."""
    with LinkedSite(
        {"/": page(*(f"{number}.png" for number in range(20)), links=["/b.html"]), "/b.html": page("b.png")}
    ) as site:
        job = new_crawl(engine, [f"{site.url}/"], max_images=5)
        assert crawl(child, engine, job)["source_state"] == "open"
        assert len(found(engine, job)) == 5
        change(engine, "UPDATE crawl_jobs SET max_images = 50, source_state = 'splitting'")
        row = crawl(child, engine, job)
        assert sorted(names(engine, job, site)) == sorted(f"/img/{name}.png" for name in [*range(20), "b"])
        assert [candidate.line for candidate in found(engine, job)] == list(range(1, 22))
        assert site.asked().count("/") == 1
    assert row["source_state"] == "exhausted"


def test_a_lost_step_costs_nothing_but_its_repeat(engine, child) -> None:
    """Whatever a worker had taken or even read when it was lost: nothing is missing or double afterwards."""
    with LinkedSite(ANSWERS) as site:
        job = new_crawl(engine, [f"{site.url}/"], depth=9)
        child.run(make_step(child, job.id, 0))
        with transaction(engine) as session:
            assert len(take_pages(session, job.id, 100).pages) == 1
        child.run(make_step(child, job.id, 1))

        def lose(self, session, step):
            step.commit(session)
            raise LostStepError("killed")

        whole = StepRun._advance
        StepRun._advance = lose
        try:
            child.run(make_step(child, job.id, 2))
        finally:
            StepRun._advance = whole
        assert counts(engine, job)["read"] == 1
        crawl(child, engine, job)
        paths = ["a", "b", "beyond", "deep", "deeper", "deepest", "home", "logo", "new"]
        assert names(engine, job, site) == ["/a/pic", *(f"/img/{name}.png" for name in paths)]


def test_a_deadly_page_is_read_alone_and_not_for_ever(engine, child) -> None:
    """A page over which three workers were lost in a row fails; the others are read."""
    with LinkedSite({"/1": page("1.png"), "/2": page("2.png"), "/3": page("3.png")}) as site:
        job = new_crawl(engine, [f"{site.url}/{number}" for number in (1, 2, 3)])
        child.run(make_step(child, job.id, 0))
        taken = []
        for _ in range(3):
            with transaction(engine) as session:
                taken.append([page.url[-1] for page in take_pages(session, job.id, 100).pages])
        assert taken == [["1", "2", "3"], ["1"], ["1"]]
        crawl(child, engine, job)
        assert names(engine, job, site) == ["/img/2.png", "/img/3.png"]
        assert counts(engine, job)["failed"] == {"worker_lost": 1}
        assert not site.asked("/1")


def test_hosts_are_waited_for_without_a_child(engine, child) -> None:
    """A Crawl-delay is kept by letting the step wait, which counts as no attempt and holds no child."""
    robots = Answer("User-agent: *\nCrawl-delay: 10\n", "text/plain")
    with LinkedSite({"/robots.txt": robots, "/1": page("1.png"), "/2": page("2.png")}) as site:
        job = new_crawl(engine, [f"{site.url}/1", f"{site.url}/2"])
        child.run(make_step(child, job.id, 0))
        began = time.monotonic()
        child.run(make_step(child, job.id, 1))
        row = read_job(engine, job.id)
        assert time.monotonic() - began < 3
        assert row["source_wait"] == "the hosts of its pages want to be left alone"
        assert (row["source_attempts"], row["source_worker"]) == (0, None)
        assert not site.asked("/1")
        assert query(engine, "SELECT max(losses) FROM pages") == [(0,)]


def test_tries_are_counted_over_steps(engine, child) -> None:
    """A page that fails again and again, each time in another step, ends as it would have in one."""
    with LinkedSite({"/": Answer(status=429, headers={"Retry-After": "0"})}) as site:
        job = new_crawl(engine, [f"{site.url}/"])
        child.run(make_step(child, job.id, 0))
        for tries in (Tries(1, 4), Tries(1, 5)):
            with transaction(engine) as session:
                [taken] = take_pages(session, job.id, 100).pages
                release_pages(session, job.id, {taken.key: tries})
        child.run(make_step(child, job.id, 1))
        assert counts(engine, job)["failed"] == {"rate_limited": 1}
        assert site.asked().count("/") == 1
    assert (taken.attempts, taken.refusals, taken.losses) == (1, 4, 0)


def test_patterns_are_counted(engine, child) -> None:
    """Pages of one pattern, and how many of them brought nothing since the last that did."""
    with LinkedSite(
        {
            "/": page("h.png", links=["/p/1", "/p/2", "/p/3"]),
            "/p/1": page("h.png"),
            "/p/2": page("n.png"),
            "/p/3": page(),
        }
    ) as site:
        job = new_crawl(engine, [f"{site.url}/"])
        crawl(child, engine, job)
        pattern = page_pattern(parse_url(f"{site.url}/p/9"))
        with transaction(engine) as session:
            counted = count_patterns(session, job.id, [pattern])[pattern]
    assert (counted.pages, counted.dry) == (3, 1)
