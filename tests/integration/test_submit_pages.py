"""``submit --page``: what is asked for becomes the job's source, and what cannot be is refused in one sentence."""

import json

import pytest

from scheduler.cli import main
from tests.support.crawling import query
from tests.support.factories import create_profile

USER = "ada@example.invalid"


@pytest.fixture
def shell(monkeypatch, session, database_url, redis_url, tmp_path):
    """The environment of a user's shell."""
    create_profile(session, USER, balance=500, commit=True)
    variables = {"HOME": str(tmp_path), "DATABASE_URL": database_url, "REDIS_URL": redis_url, "USER": USER}
    for name, value in variables.items():
        monkeypatch.setenv(f"PIXTRAWL_{name}", value)


def test_a_crawl_is_queued(engine, shell, capsys) -> None:
    """The pages and every limit stand in the source of the job; nothing was fetched."""
    words = [
        "--page",
        "HTTP://Birds.test#top",
        "--page",
        "http://birds.test:80/",
        "--page",
        "https://owls.test/a?b",
    ]
    options = ["--depth", "2", "--same-domain", "--include", "/owls/*", "--exclude", "*/print", "--sitemaps"]
    assert main(["submit", *words, *options, "--max-pages", "50", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)
    [(kind, source, name)] = query(engine, "SELECT source_kind, source, name FROM crawl_jobs")
    assert (kind, name, job["source_state"]) == ("pages", "birds.test, owls.test/a?b", "splitting")
    assert source == {
        "pages": ["http://birds.test/", "https://owls.test/a?b"],
        "depth": 2,
        "reach": "domain",
        "include": ["/owls/*"],
        "exclude": ["*/print"],
        "max_pages": 50,
        "max_host_pages": 50,
        "sitemaps": True,
    }
    assert job["pages"]["known"] == 0


PAGE = ["--page", "http://a.test/"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--page", "a.test"], "--page a.test: the URL does not begin with http:// or https://."),
        ([*PAGE, "--depth", "-1"], "--depth is 0 to 1,000, not -1."),
        ([*PAGE, "--max-pages", "0"], "--max-pages is 1 to 1,000,000, not 0."),
        (
            [*PAGE, "--include", "owls"],
            "--include: a pattern begins with /, * or http://, and 'owls' does not.",
        ),
        ([*PAGE, "-k", "owl"], "A job takes an INPUT, keywords (-k) or pages (--page), not two of them"),
        ([*PAGE, "urls.txt"], "A job takes an INPUT, keywords (-k) or pages (--page), not two of them"),
        ([*PAGE, "--provider", "met"], "--provider is for a search: give its keywords with -k"),
        ([*PAGE, "--url-column", "x"], "--url-column is for an INPUT, and a page is none"),
        (["urls.txt", "--depth", "2"], "--depth is for a crawl by pages: say with --page where it begins"),
        (["-k", "owl", "--same-host"], "--same-host or --same-domain is for a crawl by pages"),
    ],
)
def test_what_is_refused(engine, shell, capsys, words, said) -> None:
    """One sentence, exit code 2, and no job."""
    assert main(["submit", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert query(engine, "SELECT count(*) FROM crawl_jobs") == [(0,)]
