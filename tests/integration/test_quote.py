"""What a quote says, against a real site; it is what a worker would have come to, and nothing is left of it."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.database import transaction
from models.members import create_local_profile
from models.outcomes import Verification
from models.settings import read_settings
from scheduler.cli import main
from scheduler.copying import RequestError, copy_of
from scheduler.enqueue import find_owner, read_request
from scheduler.paging import make_page_crawl
from scheduler.quote import Ears, make_quote
from scheduler.searching import make_search
from scheduler.split import READERS
from tests.support.crawling import change, job_of, query, queue_ready, read_job
from tests.support.linked_site import Answer, LinkedSite
from tests.support.processes import until
from tests.support.shop import ShopServer, hit, offer
from tests.support.site import Site
from worker.child import Child
from worker.crawl import crawl_chunk
from worker.sources.drawing import draw
from worker.store import open_store
from worker.tables.formats import TableOptions

OPTIONS = {
    "name": None,
    "max_images": None,
    "priority": 5,
    "ignore_opt_outs": "",
    "verification": Verification.FULL,
    "tables": TableOptions(),
    "unique_urls": False,
}


@pytest.fixture
def site():
    """A site whose tester decides."""
    with Site() as opened:
        yield opened


@pytest.fixture
def variables(services, database_url, redis_url, tmp_path, engine, monkeypatch):
    """The environment of a command line whose user has 100 credits; temporary files go where they can be seen."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    given = {
        "home": str(tmp_path / "home"),
        "store_url": (tmp_path / "store").as_uri(),
        "database_url": database_url,
        "redis_url": redis_url,
        "allowed_networks": "127.0.0.0/8",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"PIXTRAWL_{name.upper()}", value)
    with transaction(engine) as session:
        create_local_profile(session, read_settings().user)
    change(engine, "UPDATE credit_accounts SET current_balance = 100")
    monkeypatch.chdir(tmp_path)
    return given


def quote(engine, given, seconds_max: float = 30, ears: Ears | None = None, **more) -> dict:
    """The quote for what ``submit`` would be given."""
    fields = {name: more.pop(name) for name in ("host_transfers", "providers") if name in more}
    settings = read_settings(**fields)
    supply, wanted = read_request(settings, given, **OPTIONS | more)
    with transaction(engine) as session:
        owner = find_owner(session, settings, None, None, paying=False)
    return make_quote(
        settings,
        engine,
        supply,
        wanted,
        owner,
        random=random.Random(1),
        seconds_max=seconds_max,
        ears=ears or Ears(),
    )


def write(path, urls) -> list[str]:
    """A list of URLs, as an input."""
    path.write_text("\n".join(urls) + "\n")
    return [str(path)]


def traces(engine, tmp_path) -> tuple:
    """Everything that a quote could leave behind: rows by table, credits, and files."""
    tables = [
        name for (name,) in query(engine, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    ]
    rows = {name: query(engine, f"SELECT count(*) FROM {name}")[0][0] for name in sorted(tables)}
    accounts = query(engine, "SELECT current_balance, monthly_usage FROM credit_accounts")
    files = sorted(
        path for name in ("temporary", "store") for path in (tmp_path / name).rglob("*") if path.is_file()
    )
    return rows, accounts, files


def test_a_quote_of_everything_says_what_the_job_comes_to(engine, variables, site, tmp_path):
    """Missing, forbidden, broken, repeated and equal pictures are counted as a worker counts them, and nothing of
    it is kept or charged.
    """
    site.robots = "User-agent: *\nDisallow: /private/\n"
    paths = [f"/free/{number}" for number in range(8)]
    paths += [
        "/free/1",
        "/free/2?again",
        "/missing/1",
        "/missing/2",
        "/missing/2",
        "/private/1",
        "/garbled/3",
    ]
    urls = [site.url + path for path in paths] + ["no URL"]
    before = traces(engine, tmp_path)
    found = quote(engine, write(tmp_path / "list.txt", urls), host_transfers=20)
    assert traces(engine, tmp_path) == before
    assert found["images"] == {"low": 8, "expected": 8, "high": 8, "confidence": 0.9}
    assert found["failures"] == {
        "http_status": 3,
        "duplicate": 2,
        "robots": 1,
        "corrupt": 1,
        "invalid_url": 1,
    }
    assert found["sample"]["statuses"] == {"404": 3}
    assert found["sample"]["repeated_urls"] == 2  # /free/1, and /missing/2, which is missing twice.
    assert (found["candidates"], found["sample"]["size"], found["candidates_used"]) == (16, 16, 16)
    assert found["credits"]["expected"] == 8 * found["credits"]["per_image"]
    assert found["credits"]["balance"] == 100

    settings = read_settings(host_transfers=20)
    job = job_of(engine, urls, (tmp_path / "images").as_uri())
    child = Child(settings)
    [message] = queue_ready(engine)
    child.run(crawl_chunk(child, message.chunk_id, message.attempt))
    child.close()
    row = read_job(engine, job.id)
    assert (row["valid_images"], row["failures"]) == (8, found["failures"])
    assert (row["wire_bytes"], row["stored_bytes"]) == (found["wire_bytes"], found["bytes"])


def test_some_of_a_long_list_are_tried_at_random_and_always_the_same(engine, variables, site, tmp_path):
    """About one in a hundred, spread over all of it, by the seed; the range holds the truth."""
    urls = [f"{site.url}/{'missing' if number % 3 == 0 else 'free'}/{number}" for number in range(5000)]
    given = write(tmp_path / "list.txt", urls)
    found = quote(engine, given, host_transfers=50)
    assert found["sample"]["size"] == 50
    assert found["images"]["low"] <= 3333 <= found["images"]["high"]
    assert found["images"]["low"] < found["images"]["expected"] < found["images"]["high"]
    assert sum(found["failures"].values()) + found["images"]["expected"] == 5000
    assert found["seconds"] > 0
    numbers = [int(path.rpartition("/")[2]) for path in site.asked]
    assert all(any(low <= number < low + 1250 for number in numbers) for low in range(0, 5000, 1250))
    fewer = quote(engine, given, host_transfers=50, max_images=100)
    assert len(site.asked) == 50
    assert fewer["images"]["expected"] == 100
    assert fewer["candidates_used"] == pytest.approx(100 * 5000 / found["images"]["expected"], abs=1)
    assert "The credits are enough for 100 images" in " ".join(found["notes"])
    assert "The credits are enough" not in " ".join(fewer["notes"])


def test_what_does_not_answer_in_time_is_counted_by_itself(engine, variables, site, tmp_path):
    """A host that is silent gives neither images nor failures: the range has room for both."""
    urls = [f"{site.url}/held/{number}" for number in range(4)]
    found = quote(engine, write(tmp_path / "list.txt", urls), seconds_max=1.5)
    assert (found["sample"]["accepted"], found["unanswered"], found["failures"]) == (0, 4, {})
    assert found["images"] == {"low": 0, "expected": 0, "high": 4, "confidence": 0.9}
    assert "4 candidates had no outcome when the time was over" in found["notes"][0]
    assert until(lambda: site.waiting == 0, "no transfer that goes on")


def test_a_host_that_wants_to_be_asked_slowly_is(engine, variables, site, tmp_path):
    """Its Crawl-delay is kept: few are tried, the others are no failures, and the time follows from the delay."""
    site.robots = "User-agent: *\nCrawl-delay: 1\n"
    urls = [f"{site.url}/free/{number}" for number in range(10)]
    ears = Ears(stop=lambda: len(site.log) > 1)
    found = quote(engine, write(tmp_path / "list.txt", urls), ears=ears)
    assert found["interrupted"]
    assert (len(site.log), found["failures"]) == (2, {})
    assert site.log[1][0] - site.log[0][0] > 0.9
    assert found["sample"]["size"] + found["sample"]["not_tried"] == 10
    assert found["sample"]["not_tried"] >= 7
    assert found["pace"]["slowest_host"] == site.url.partition("://")[2]
    assert found["seconds"] == pytest.approx(10, abs=4)


def test_a_search_is_quoted_by_its_first_results(engine, variables, site, tmp_path, monkeypatch):
    """Its keywords share the sample fairly; how much there is is what the providers say."""
    monkeypatch.syspath_prepend(offer(tmp_path / "packages").partition(":")[0])
    stock = {
        word: [hit(f"{site.url}/{kind}/{first + number}", number) for number in range(200)]
        for word, kind, first in (("cat", "free", 0), ("owl", "missing", 500))
    }
    with ShopServer(stock) as shop:
        monkeypatch.setenv("PIXTRAWL_PROVIDER_SHOP_URL", shop.url)
        search = make_search(read_settings(), ["cat", "owl"], ["shop"], [])
        before = traces(engine, tmp_path)
        unknown = quote(engine, search, max_images=100, host_transfers=20)
        shop.counts = True
        found = quote(engine, search, max_images=100, host_transfers=20)
        assert traces(engine, tmp_path) == before
    assert unknown["candidates"] is None
    assert (unknown["images"]["expected"], unknown["candidates_used"]) == (100, 200)
    for one in (found, unknown):
        assert (one["sample"]["accepted"], one["sample"]["failures"]) == (10, {"http_status": 10})
        assert not one["sample"]["at_random"]
    assert found["candidates"] == 400
    assert found["images"]["high"] == 100


def test_a_crawl_by_pages_is_quoted_by_the_pages_it_begins_with(engine, variables, tmp_path):
    """Their images, wherever they have moved, are the least that there will be."""
    images = "".join(f"<img src='/img/{number}.png'>" for number in range(5))
    answers = {
        "/": Answer(status=301, headers={"Location": "/start"}),
        "/start": f"{images}<img src='/gone.png'><a href='/more'>more</a>",
        "/more": "<img src='/img/9.png'>",
    }
    with LinkedSite(answers) as site:
        crawl = make_page_crawl([f"{site.url}/"], depth=2)
        before = traces(engine, tmp_path)
        found = quote(engine, crawl, host_transfers=20)
        assert traces(engine, tmp_path) == before
        assert "/more" not in site.asked()
        only = quote(engine, make_page_crawl([f"{site.url}/"]), host_transfers=20)
    assert (found["candidates"], found["at_least"]) == (6, True)
    assert (only["candidates"], only["at_least"]) == (6, False)
    assert (found["sample"]["accepted"], found["failures"]) == (5, {"http_status": 1})


HANGING = """
import sys
from scheduler.cli import main
from worker.sources import page_fetching, page_reading

page_fetching.PARSE_SECONDS_MAX = 0.2
page_reading.read_page = lambda *_: exec("while True: pass")
sys.exit(main(["submit", "--quote", "--page", sys.argv[1]]))
"""
"""A parser that never ends: those that we know of take 10 seconds for nobody's good."""


def test_a_page_that_hangs_its_parser_ends_a_quote_with_a_sentence(variables, tmp_path):
    """And with nothing left behind, though a thread of the command can never end."""
    with LinkedSite({"/": "<img src=/img/a.png>"}) as site:
        command = [sys.executable, "-c", HANGING, f"{site.url}/"]
        environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        expected = (
            f"pixtrawl: {site.url}/ cannot be read: its parser is not done with it after 0.2 s: leave it out"
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(expected), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_repeat_is_found_wherever_it_stands(variables, tmp_path):
    """Of each URL all but the last are repeated, also those that no block of the input shares with their twins."""
    urls = [f"http://a.test/{number % 700}" for number in range(1000)]
    settings = read_settings()
    for unique in (False, True):
        copy = copy_of(settings, write(tmp_path / "list.txt", urls), TableOptions(), unique_urls=unique)
        store = open_store((tmp_path / "temporary").as_uri())
        store.put_stream(copy.name, copy.blocks())
        drawn = draw(READERS[copy.kind], store, copy.source, 1000, 1000, random.Random(1))
        assert drawn.repeated == frozenset(range(300))
        unfetched = {one.position: one.duplicate_of for one in drawn.candidates if one.duplicate_of}
        assert unfetched == ({place: place + 700 for place in range(300)} if unique else {})
    assert [one.position for one in drawn.candidates] != sorted(one.position for one in drawn.candidates)


def test_what_submit_refuses_is_not_quoted(engine, variables, tmp_path):
    """In the same words, and nothing is left."""
    before = traces(engine, tmp_path)
    with pytest.raises(RequestError, match="There is no URL in"):
        quote(engine, write(tmp_path / "list.txt", ["# nothing"]))
    with pytest.raises(RequestError, match="The number of images is"):
        quote(engine, write(tmp_path / "list.txt", ["http://a.test/"]), max_images=0)
    assert traces(engine, tmp_path) == before


def test_an_interrupted_quote_says_what_is_known(engine, variables, site, tmp_path, capsys, monkeypatch):
    """On Ctrl-C the command prints what it has, as JSON here, and its exit code is 130; in full it is a table."""
    monkeypatch.setenv("PIXTRAWL_HOST_TRANSFERS", "20")
    before = traces(engine, tmp_path)
    urls = [f"{site.url}/{'held' if number < 2 else 'free'}/{number}" for number in range(10)]
    [given] = write(tmp_path / "list.txt", urls)

    def interrupt() -> None:
        until(lambda: site.waiting == 2 and len(site.served) == 8, "two that wait")
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as thread:
        interrupting = thread.submit(interrupt)
        assert main(["submit", given, "--quote", "--json"]) == 130
        interrupting.result()
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["interrupted"]
    assert found["images"]["low"] == found["sample"]["accepted"] == 8 - found["sample"]["unanswered"] + 2
    assert "Stopping: what is known so far follows." in said.err

    site.release()
    assert main(["submit", given, "--quote"]) == 0
    said = capsys.readouterr()
    assert "Quote for 'list.txt': 10 candidates" in said.out
    assert "Nothing was stored and nothing was charged." in said.out
    assert said.err.startswith("Trying 10 candidates.")
    assert traces(engine, tmp_path) == before
