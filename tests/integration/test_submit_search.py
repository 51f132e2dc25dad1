"""``pixtrawl submit`` and ``run`` with keywords: what is refused, what is written, and what --dry-run shows."""

import json

import pytest

from scheduler.cli import main
from tests.support.crawling import query
from tests.support.factories import create_profile
from tests.support.shop import ShopServer, hit, offer

USER = "ada@example.invalid"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A provider with its server."""
    monkeypatch.syspath_prepend(offer(tmp_path / "packages").partition(":")[0])
    stock = {
        "cat": [hit(f"http://images.test/{number}.jpg", number) for number in range(30)],
        "red panda": [hit("http://images.test/panda.jpg", 99, creator=None, licence="by-nc")],
    }
    with ShopServer(stock) as opened:
        yield opened


@pytest.fixture(autouse=True)
def environment(monkeypatch, session, database_url, redis_url, tmp_path, shop) -> None:
    """The environment of a user's shell."""
    create_profile(session, USER, balance=500, commit=True)
    variables = {
        "HOME": tmp_path / "home",
        "STORE_URL": (tmp_path / "store").as_uri(),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "USER": USER,
        "ALLOWED_NETWORKS": "127.0.0.0/8",
        "PROVIDER_SHOP_URL": shop.url,
        "PROVIDER_ANNEX_URL": shop.url,
        "PROVIDER_ANNEX_NAME": "annex",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"PIXTRAWL_{name}", str(value))
    (tmp_path / "urls.txt").write_text("http://images.test/1.jpg\n")
    monkeypatch.chdir(tmp_path)


REFUSED = {
    "nothing": ([], "give an INPUT, keywords with -k, or a --page"),
    "both": (["urls.txt", "-k", "cat"], "not both"),
    "a provider without keywords": (["urls.txt", "--provider", "shop"], "--provider is for a search"),
    "a licence without keywords": (["urls.txt", "--license", "by"], "--license is for a search"),
    "a look without keywords": (["urls.txt", "--dry-run"], "--dry-run is for a search"),
    "a column with keywords": (["-k", "cat", "--url-column", "u"], "--url-column is for an INPUT"),
    "no such provider": (["-k", "cat", "--provider", "nobody"], "no installed package offers"),
    "no such licence": (["-k", "cat", "--license", "mine"], "--license: there is no licence 'mine'"),
    "a licence that it has not": (
        ["-k", "cat", "--provider", "shop", "--license", "by-nd"],
        "--provider shop: shop has nothing under by-nd.",
    ),
    "a missing key": (["-k", "cat", "--provider", "europeana"], "PIXTRAWL_PROVIDER_EUROPEANA_KEY"),
    "an empty keyword": (["-k", " "], "A keyword has 1 to 200 characters"),
    "a control character": (["-k", "a\x1b[31m"], "A keyword has 1 to 200 characters"),
    "no images": (["-k", "cat", "-n", "0"], "The number of images is 1 to"),
}


@pytest.mark.parametrize("command", ["submit", "run"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(engine, capsys, command, case) -> None:
    """With exit code 2 and the way out, before anything is started; nothing is written."""
    arguments, sentence = REFUSED[case]
    assert main([command, *arguments]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert query(engine, "SELECT count(*) FROM crawl_jobs") == [(0,)]


def test_a_search_is_a_job(engine, capsys, tmp_path) -> None:
    """Its row says what is searched for; the seed's column has the keywords; no input is stored."""
    words = ["-k", "cat", "-k", " red   panda ", "-k", "cat", "--provider", "shop", "--provider", "annex"]
    assert main(["submit", *words, "--license", "open,by-nc", "-n", "40"]) == 0
    said = capsys.readouterr().out
    begins = "searches shop and annex for 'cat', 'red panda', until 40 images are accepted"
    assert said == f"Job 1 in project default: {begins}\n"
    row = query(
        engine, "SELECT name, keywords, source_kind, source, max_images, total_images FROM crawl_jobs"
    )
    licences = ["by", "by-nc", "by-sa", "cc0", "pdm"]
    source = {"keywords": ["cat", "red panda"], "providers": ["shop", "annex"], "licences": licences}
    assert row == [("cat, red panda", ["cat", "red panda"], "keywords", source, 40, 0)]
    assert main(["submit", "-k", "cat", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert (job["max_images"], job["keywords"], job["source_kind"], job["searches"]) == (
        1000,
        ["cat"],
        "keywords",
        [],
    )
    assert query(engine, "SELECT source->'providers' FROM crawl_jobs WHERE id = :id", id=job["id"]) == [
        (["openverse"],)
    ]
    assert not (tmp_path / "store" / "inputs").exists()


def test_a_dry_run_shows_what_it_would_begin_with(engine, capsys, shop) -> None:
    """URL, licence, creator and source page of the first results, and the price; nothing is written."""
    words = ["submit", "-k", "cat", "-k", "red panda", "-k", "newt", "--provider", "shop", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "1,000 images would cost 1,000 credits at most; the account has 500." in said.err
    assert "shop has nothing for 'newt'." in said.err
    lines = said.out.splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[1].split() == [
        "cat",
        "shop",
        "by",
        "4.0",
        "P0",
        "http://images.test/0.jpg",
        "http://shop.test/0",
    ]
    assert main([*words, "--license", "by-nc", "-n", "7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [len(one["hits"]) for one in document["results"]] == [0, 1, 0]
    [panda] = document["results"][1]["hits"]
    assert (panda["url"], panda["creator"], panda["licence"]) == (
        "http://images.test/panda.jpg",
        None,
        "by-nc",
    )
    assert (document["max_images"], document["credits_max"], document["balance"]) == (7, 7, 500)
    shop.script = lambda *_: (401, {}, "{}")
    assert main(["run", "-k", "cat", "--provider", "shop", "--dry-run"]) == 1
    assert "shop does not accept PIXTRAWL_PROVIDER_SHOP_KEY ('cat')." in capsys.readouterr().err
    assert query(engine, "SELECT count(*) FROM crawl_jobs") == [(0,)]
