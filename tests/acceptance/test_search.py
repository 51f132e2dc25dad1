"""A search with a real scheduler and real workers, one of which is killed while it asks."""

import json
import os
import signal

import pytest

from tests.support.crawling import check_books, new_job, query, read_job
from tests.support.fleet import Fleet, ended
from tests.support.processes import call, environment, until
from tests.support.shop import ShopServer, hit, offer
from tests.support.site import Site


@pytest.fixture
def site():
    """Where the pictures are."""
    with Site() as opened:
        yield opened


def test_a_worker_killed_while_it_asks_costs_a_repeat_of_its_step(
    engine, services, database_url, redis_url, tmp_path, site
) -> None:
    """Of two workers one asks; it is killed, the other asks the same again, and the job has each image once."""
    urls = [f"{site.url}/{'missing' if number % 4 == 0 else 'free'}/{number}" for number in range(90)]
    stock = {"cat": [hit(url, number) for number, url in enumerate(urls)]}
    with (
        ShopServer(stock) as shop,
        Fleet(
            tmp_path,
            database_url,
            redis_url,
            {"PYTHONPATH": offer(tmp_path / "packages"), "PIXTRAWL_PROVIDER_SHOP_URL": shop.url},
            lease_seconds=3,
        ) as fleet,
    ):
        shop.held = {"cat"}
        fleet.scheduler()
        fleet.worker(1)
        fleet.worker(1)
        source = {"keywords": ["cat"], "providers": ["shop"], "licences": []}
        job = new_job(
            engine,
            [],
            source_kind="keywords",
            source_state="splitting",
            source=source,
            max_images=40,
            store_url=(tmp_path / "images").as_uri(),
        )
        until(lambda: shop.log, "a worker that asks")
        worker = read_job(engine, job.id)["source_worker"]
        os.kill(int(worker.partition("/")[2]), signal.SIGKILL)
        until(lambda: len(shop.log) > 1, "another worker that asks")
        assert shop.log[1][1:] == ("cat", 1)
        assert read_job(engine, job.id)["source_attempts"] == 2
        shop.release()
        row = ended(engine, job)
    assert (row["status"], row["valid_images"], row["source_detail"]) == (
        "completed",
        40,
        "max_images is met",
    )
    searched = query(engine, "SELECT DISTINCT keyword, provider, licence, creator IS NULL FROM images")
    assert searched == [("cat", "shop", "by 4.0", False)]
    tried = query(
        engine, "SELECT original_url FROM images UNION ALL SELECT url FROM failures WHERE url IS NOT NULL"
    )
    assert len(tried) == len(set(tried)) == row["total_images"]
    assert sorted({page for _, _, page in shop.log}) == list(range(1, len(shop.log)))
    check_books(engine)


def test_one_command_searches_and_crawls(tmp_path, site) -> None:
    """``run -k`` ends with the images of each keyword; the same again is the same job, and says so."""
    stock = {
        word: [hit(f"{site.url}/free/{first + number}", first + number) for number in range(40)]
        for word, first in (("cat", 0), ("red panda", 100))
    }
    shell = environment(tmp_path / "home", host_transfers=500)
    with ShopServer(stock) as shop:
        shell |= {"PYTHONPATH": offer(tmp_path / "packages"), "PIXTRAWL_PROVIDER_SHOP_URL": shop.url}
        words = ("run", "-k", "cat", "-k", "red panda", "--provider", "shop", "-n", 30)
        first = call(tmp_path, shell, *words, "--json")
        again = call(tmp_path, shell, *words)
    assert first.process.returncode == 0, first.errors
    job = json.loads(first.output)
    assert (job["status"], job["valid_images"], job["source_detail"]) == (
        "completed",
        30,
        "max_images is met",
    )
    searches = [(one["keyword"], one["provider"], one["accepted"]) for one in job["searches"]]
    assert searches == [("cat", "shop", 15), ("red panda", "shop", 15)]
    assert again.process.returncode == 2
    assert "--again" in again.errors
