"""Searching by keyword, step by step in a pool child's own process, at a local server that speaks a small API."""

import dataclasses
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr
from redis import Redis

from models.candidates import unpack_candidates
from models.database import transaction
from models.discovery import ask_for_steps
from models.settings import read_settings
from tests.support.crawling import (
    accepted,
    change,
    check_books,
    new_job,
    query,
    queue_ready,
    read_job,
    refused,
    settle_run,
    start,
)
from tests.support.shop import ShopServer, hit, offer
from worker.child import Child
from worker.discover import make_step
from worker.sources import asking, keywords
from worker.sources.feeds import STALE_PAGES_MAX

NOW = "UPDATE crawl_jobs SET source_available_at = now() WHERE source_wait IS NOT NULL AND id = :id"


def stock(word: str, count: int, first: int = 0) -> list[dict]:
    """So many images of a keyword."""
    return [hit(f"http://images.test/{word}/{number}.jpg", number) for number in range(first, first + count)]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A provider with its server."""
    monkeypatch.syspath_prepend(offer(tmp_path / "packages").partition(":")[0])
    with ShopServer({"cat": stock("cat", 500), "owl": stock("owl", 500)}) as opened:
        yield opened


@pytest.fixture
def make_child(services, database_url, tmp_path, shop, redis_url):
    """Makes what a pool child has open, with what its provider is given."""
    children = []

    def make(**fields: object) -> Child:
        given = {"url": shop.url, **{name: str(value) for name, value in fields.items()}}
        settings = read_settings(
            home=tmp_path,
            database_url=database_url,
            redis_url=redis_url,
            allowed_networks="127.0.0.0/8",
            providers={"shop": given, "annex": given | {"name": "annex"}},
        )
        children.append(Child(settings))
        return children[-1]

    yield make
    for child in children:
        child.close()


@pytest.fixture
def child(make_child) -> Child:
    """What a pool child has open."""
    return make_child()


def search(engine, *keywords: str, providers=("shop",), licences=(), **columns):
    """A job that searches."""
    source = {"keywords": list(keywords), "providers": list(providers), "licences": list(licences)}
    usual = {"source_kind": "keywords", "source_state": "splitting", "source": source, "max_images": 100}
    return new_job(engine, [], keywords=list(keywords), **(usual | columns))


def go(child: Child, engine, job, steps: int = 1) -> dict:
    """Make the next steps of a job; its row afterwards."""
    for _ in range(steps):
        change(engine, NOW, id=job.id)
        child.run(make_step(child, job.id, read_job(engine, job.id)["source_step"]))
    return read_job(engine, job.id)


def to_the_end(child: Child, engine, job, steps_max: int = 60) -> dict:
    """Make steps until the source has ended or wants no more."""
    for _ in range(steps_max):
        row = go(child, engine, job)
        if row["source_state"] != "splitting":
            return row
    raise AssertionError(f"the source goes on after {steps_max} steps: {row}")


def candidates_of(engine, job) -> list:
    """Every candidate of a job, in order."""
    rows = query(
        engine,
        "SELECT candidates, CAST(image_range->>'start' AS int) FROM job_chunks WHERE job_id = :id ORDER BY 2",
        id=job.id,
    )
    return [candidate for packed, first in rows for candidate in unpack_candidates(bytes(packed), first)]


def by_keyword(engine, job) -> dict[str, int]:
    """How many candidates each keyword has."""
    words = [candidate.about.keyword for candidate in candidates_of(engine, job)]
    return {word: words.count(word) for word in sorted(set(words))}


def resolve(engine, outcome) -> None:
    """Give every candidate that waits the outcome that ``outcome`` makes of it."""
    while messages := queue_ready(engine):
        for message in messages:
            chunk = start(engine, message)
            assert chunk is not None
            settle_run(engine, chunk, [outcome(candidate) for candidate in chunk.candidates])


def test_a_search_becomes_candidates_with_all_that_is_known(engine, child, shop) -> None:
    """Each keyword has its half, each candidate its provenance, and no page is asked for twice."""
    job = search(engine, "cat", "owl", max_images=90)
    row = to_the_end(child, engine, job)
    assert (row["source_state"], row["source_position"], row["total_images"]) == ("open", 90, 90)
    assert by_keyword(engine, job) == {"cat": 45, "owl": 45}
    first = min(candidates_of(engine, job), key=lambda candidate: (candidate.about.keyword, candidate.line))
    assert (first.url, first.line) == ("http://images.test/cat/0.jpg", 1)
    assert first.about.document == {
        "keyword": "cat",
        "source_page": "http://shop.test/0",
        "provider": "shop",
        "licence": "by 4.0",
        "creator": "P0",
        "metadata": {"provider_id": "0", "title": "T0"},
    }
    assert len(set(shop.log)) == len(shop.log) == 6
    resolve(engine, lambda candidate: refused(candidate.position))
    row = to_the_end(child, engine, job)
    assert by_keyword(engine, job) == {"cat": 90, "owl": 90}
    assert len({(word, page) for _, word, page in shop.log}) == len(shop.log)
    check_books(engine)


def test_what_failed_of_a_keyword_is_made_up_for_by_the_same(engine, child, shop) -> None:
    """Fair is by images: a keyword whose candidates fail gets more of them."""
    job = search(engine, "cat", "owl", max_images=100)
    to_the_end(child, engine, job)

    def dead_cats(candidate):
        if candidate.about.keyword == "cat" and candidate.line % 2:
            return refused(candidate.position)
        return accepted_as(candidate)

    resolve(engine, dead_cats)
    to_the_end(child, engine, job)
    assert by_keyword(engine, job) == {"cat": 75, "owl": 50}
    resolve(engine, accepted_as)
    counts = query(engine, "SELECT keyword, count(*) FROM images GROUP BY keyword ORDER BY keyword")
    assert counts == [("cat", 50), ("owl", 50)]
    check_books(engine)


def accepted_as(candidate):
    """An image for a candidate, with what is known of it."""
    return dataclasses.replace(accepted(candidate.position), about=candidate.about)


def test_a_keyword_that_runs_dry_leaves_its_share_to_the_others(engine, child, shop) -> None:
    """And when all have, the job says so."""
    shop.stock = {"cat": stock("cat", 500), "owl": stock("owl", 7), "newt": []}
    job = search(engine, "cat", "owl", "newt", max_images=100)
    to_the_end(child, engine, job)
    assert by_keyword(engine, job) == {"cat": 93, "owl": 7}
    shop.stock = {"cat": stock("cat", 30), "owl": stock("owl", 7)}
    other = search(engine, "cat", "owl", max_images=100)
    row = to_the_end(child, engine, other)
    assert (row["source_state"], row["source_detail"], row["source_position"]) == (
        "exhausted",
        "shop has no more",
        37,
    )


def test_several_providers_are_asked_for_each_keyword(engine, child, shop) -> None:
    """What one has of another's is handed out once: by URL and by sha1, also when only a letter's case differs."""
    same = [hit("HTTP://Images.test/cat/1.jpg", 1), hit("http://other.test/1.jpg", 2, sha1="a" * 40)]
    shop.stock = {"cat": [*stock("cat", 3), hit("http://images.test/again.jpg", 9, sha1="a" * 40), *same]}
    job = search(engine, "cat", providers=("shop", "annex"))
    row = to_the_end(child, engine, job)
    urls = [candidate.url for candidate in candidates_of(engine, job)]
    assert sorted(urls) == sorted(
        [f"http://images.test/cat/{number}.jpg" for number in range(3)] + ["http://images.test/again.jpg"]
    )
    assert row["source_detail"] == "shop has no more; annex has no more"
    assert shop.asked() == {"cat": 2}


def test_a_provider_that_repeats_itself_is_given_up(engine, child, shop) -> None:
    """The same pages for ever, the same cursor for ever, empty pages for ever: bounded, and said."""
    shop.stock = {"cat": stock("cat", 20)}
    shop.script = lambda word, page: (200, {}, shop.page(word, 1, following=page + 1))
    job = search(engine, "cat")
    row = to_the_end(child, engine, job)
    assert (row["source_detail"], row["source_position"]) == (
        f"shop brought nothing new in {STALE_PAGES_MAX} pages",
        20,
    )
    assert len(shop.log) == STALE_PAGES_MAX + 1
    shop.script = lambda word, _: (200, {}, shop.page(word, 1, following=2))
    assert to_the_end(child, engine, search(engine, "cat"))["source_detail"] == "shop repeats itself"
    shop.script = lambda _, page: (200, {}, json.dumps({"hits": [], "next": page + 1}))
    row = to_the_end(child, engine, search(engine, "cat"))
    assert (row["source_state"], row["source_position"]) == ("exhausted", 0)


def test_a_source_of_nothing_but_failures_ends(engine, child, shop, monkeypatch) -> None:
    """A provider that has ever more that cannot be fetched does not keep a job alive for ever."""
    monkeypatch.setattr(keywords, "TRIED_MIN", 10)
    shop.script = lambda _, page: (
        200,
        {},
        json.dumps({"hits": stock("cat", 100, page * 100), "next": page + 1}),
    )
    job = search(engine, "cat", max_images=20)
    row = to_the_end(child, engine, job)
    while row["source_state"] != "exhausted":
        assert row["source_position"] < 1000
        resolve(engine, lambda candidate: refused(candidate.position))
        row = to_the_end(child, engine, job)
    assert row["source_detail"] == "more than 20 candidates for each image were tried"
    assert row["source_position"] == 420


def test_refusals_are_heeded_by_all(engine, make_child, shop) -> None:
    """429 with Retry-After: neither this job nor another, in whichever child, asks before the time has come."""
    shop.script = lambda *_: (429, {"Retry-After": "600"}, "{}")
    first, second = search(engine, "cat"), search(engine, "owl")
    child, other = make_child(), make_child()
    row = go(child, engine, first)
    assert (row["source_wait"], row["source_attempts"]) == ("shop answered 429", 1)
    assert query(
        engine,
        "SELECT source_available_at > now() + interval '590 s' FROM crawl_jobs WHERE id = :id",
        id=first.id,
    ) == [(True,)]
    assert go(other, engine, second)["source_wait"] == "shop answered 429"
    assert len(shop.log) == 1
    with transaction(engine) as session:
        assert ask_for_steps(session) == []


def test_a_provider_that_stumbles_is_asked_again(engine, child, shop) -> None:
    """503, a broken connection: tried again within the step; a short Retry-After is waited for."""
    answers = [(503, {}, ""), (429, {"Retry-After": "1"}, "")]
    shop.script = lambda *_: answers.pop(0) if answers else None
    began = time.monotonic()
    row = go(child, engine, search(engine, "cat", max_images=20))
    assert (row["source_position"], len(shop.log)) == (20, 3)
    assert time.monotonic() - began >= 2


def test_a_provider_that_does_not_answer_is_left_alone(
    engine, make_child, shop, monkeypatch, redis_url
) -> None:
    """Its time is limited, nobody else tries meanwhile, and it is left alone for longer each time in a row."""
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0)
    child, other = make_child(), make_child()
    child.settings = child.settings.model_copy(update={"transfer_seconds_max": 0.3})
    shop.held = {"cat"}
    job = search(engine, "cat")
    with Redis(unix_socket_path=redis_url.partition("://")[2]) as redis:
        assert go(child, engine, job)["source_wait"] == "shop gives no answer: TimeoutError"
        [key] = [key for key in redis.keys("pixtrawl:provider:shop:*") if key.count(b":") == 3]
        redis.hset(key, "down", 5)  # It has failed for a while.
        for seconds in (32, 64):
            redis.hdel(key, "until")
            row = go(child, engine, job)
            left_alone = int(redis.hget(key, "until")) / 1000 - redis.time()[0]
            assert seconds / 2 < left_alone <= seconds + 1
            asked = len(shop.log)
            assert go(other, engine, search(engine, "owl"))["source_wait"] == row["source_wait"]
            assert len(shop.log) == asked
        redis.hdel(key, "until")
        shop.release()
        row = go(child, engine, job)
        assert (row["source_position"], row["source_attempts"], redis.hget(key, "down")) == (100, 0, None)


def test_errors_that_will_not_pass_end_the_source_and_say_why(engine, child, shop) -> None:
    """A refused key names its variable; what is no JSON, or of another form, is said; another provider goes on."""
    shop.script = lambda *_: (401, {}, "{}")
    row = to_the_end(child, engine, search(engine, "cat", "owl"))
    assert row["source_detail"] == "shop does not accept PIXTRAWL_PROVIDER_SHOP_KEY"
    shop.script = lambda word, _: (200, {}, "<html>") if word == "cat" else None
    job = search(engine, "cat", "owl")
    row = to_the_end(child, engine, job)
    assert by_keyword(engine, job) == {"owl": 100}
    shop.script = lambda *_: (302, {"Location": "http://10.0.0.1/"}, "")
    row = to_the_end(child, engine, search(engine, "cat"))
    assert row["source_detail"].startswith("shop cannot be asked: ")
    shop.script = lambda *_: (200, {}, '{"hits": [{"odd": 1}], "next": null}')
    row = go(child, engine, search(engine, "cat"))
    assert row["source_wait"] == "shop broke off: unexpected TypeError"


def test_licences_are_filtered_whatever_a_provider_says(engine, child, shop) -> None:
    """An unknown one is left out when a filter is set."""
    fields = [{"licence": "by-nc"}, {"licence": None}, {"licence": "cc0", "licence_version": "1.0"}]
    shop.stock = {"cat": [hit(f"http://images.test/{n}.jpg", n, **each) for n, each in enumerate(fields)]}
    job = search(engine, "cat", licences=["open"])
    to_the_end(child, engine, job)
    assert [candidate.about.licence for candidate in candidates_of(engine, job)] == ["cc0 1.0"]
    job = search(engine, "cat")
    to_the_end(child, engine, job)
    assert [candidate.about.licence for candidate in candidates_of(engine, job)] == [
        "by-nc 4.0",
        None,
        "cc0 1.0",
    ]


def test_the_pace_is_kept_by_all_together(engine, make_child, shop) -> None:
    """Two children at once ask no more often than the provider allows; the quota of a day ends it for that day."""
    shop.size = 1
    children = [make_child(rate=20, per_day=12), make_child(rate=20, per_day=12)]
    jobs = [search(engine, "cat"), search(engine, "owl")]

    def steps(number: int) -> dict:
        while True:
            row = go(children[number], engine, jobs[number])
            if row["source_wait"] is not None:
                return row

    with ThreadPoolExecutor(2) as threads:
        rows = list(threads.map(steps, range(2)))
    assert len(shop.log) == 12
    with Redis(
        unix_socket_path=children[0].settings.redis_url.get_secret_value().partition("://")[2]
    ) as redis:
        [key] = redis.scan_iter("pixtrawl:provider:*:starts")
        starts = [start for _, start in redis.zrange(key, 0, -1, withscores=True)]
    assert min(later - earlier for earlier, later in itertools.pairwise(starts)) >= 50
    seconds = max(when for when, _, _ in shop.log) - min(when for when, _, _ in shop.log)
    assert seconds > 0.35
    assert {row["source_wait"] for row in rows} == {"shop is asked 12 times a day at most"}
    assert {row["source_attempts"] for row in rows} == {0}
    waits = query(engine, "SELECT DISTINCT source_available_at > now() + interval '23 h' FROM crawl_jobs")
    assert waits == [(True,)]


def test_without_redis_nobody_asks(engine, make_child, shop) -> None:
    """The provider counts all of us as one, and no child knows what the others do."""
    child = make_child()
    child.settings = child.settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    row = go(child, engine, search(engine, "cat"))
    assert row["source_wait"].startswith("Redis is away, so nobody asks shop")
    assert (row["source_attempts"], shop.log) == (0, [])
