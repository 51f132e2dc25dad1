"""Pages are known by a normal form of their URL, belong to a pattern, and are in a job's scope or not."""

import pytest

from worker.address import parse_url
from worker.sources.page_url import leads_nowhere, normal_form, page_key, page_pattern
from worker.sources.scope import PatternError, Reach, Scope

SITE = "http://site.test:80"


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://Site.TEST:80/a#b", "/a"),
        ("http://site.test", "/"),
        ("http://site.test/?", "/"),
        ("http://site.test//a//b/", "/a/b/"),
        ("http://site.test/a?y=2&x=1", "/a?x=1&y=2"),
        ("http://site.test/%7euser/%c3%a4%2f?q=%41", "/~user/%C3%A4%2F?q=A"),
        ("http://site.test/a;jsessionid=0A9?x=1", "/a?x=1"),
        ("http://site.test/(S(abc123))/a", "/a"),
        ("http://site.test/a?PHPSESSID=1&sid=2&x=1&utm_source=n&fbclid=3", "/a?x=1"),
        ("http://site.test/a?&&", "/a"),
    ],
)
def test_normal_form(url, normal):
    """What names a session or a visitor's way is dropped, and what says the same is written the same."""
    assert normal_form(parse_url(url)) == SITE + normal


@pytest.mark.parametrize("other", ["/a?x=2", "/A", "/a/", "/b", "/a?x=1&y"])
def test_other_pages(other):
    """Whatever may be another page has another key."""
    assert page_key(parse_url("http://site.test/a?x=1")) != page_key(parse_url(f"http://site.test{other}"))
    assert len(page_key(parse_url("http://site.test/"))) == 16


def test_patterns_of_urls():
    """Numbers and parameters make no new pattern; another path or host does."""
    day = page_pattern(parse_url("http://site.test/calendar/2026/11?view=week"))
    assert day == page_pattern(parse_url("http://site.test/calendar/1999/1?sid=7"))
    assert day != page_pattern(parse_url("http://site.test/events/2026/11"))
    assert day != page_pattern(parse_url("http://other.test/calendar/2026/11"))


@pytest.mark.parametrize(
    ("path", "nowhere"),
    [
        ("/a/b/a/b/a/c", False),
        ("/a/b/a/b/a/b/a/b", True),
        ("/" + "/".join(str(number) for number in range(20)), False),
        ("/" + "/".join(str(number) for number in range(21)), True),
        ("/?" + "&".join(f"f{number}=1" for number in range(13)), True),
        ("/?" + "&".join(f"f{number}=1" for number in range(12)), False),
        ("/" + "x" * 2000, True),
    ],
)
def test_urls_that_lead_nowhere(path, nowhere):
    """Paths that repeat themselves, and URLs that are too long or too varied, are those of traps."""
    assert leads_nowhere(parse_url(f"http://site.test{path}")) is nowhere


@pytest.mark.parametrize(
    ("scope", "inside", "outside"),
    [
        (Scope(Reach.HOST, hosts=["a.test"]), "http://a.test/x", "http://www.a.test/x"),
        (Scope(Reach.HOST, hosts=["a.test:8080"]), "http://a.test:8080/x", "http://a.test/x"),
        (Scope(Reach.HOST, hosts=["a.test"]), "https://a.test/", "http://a.test.b.test/"),
        (Scope(Reach.DOMAIN, hosts=["www.a.co.uk"]), "http://cdn.a.co.uk/x", "http://b.co.uk/x"),
        (Scope(Reach.DOMAIN, hosts=["127.0.0.1:1"]), "http://127.0.0.1:1/x", "http://127.0.0.2:1/x"),
        (Scope(Reach.HOST, ["/g/*"], hosts=["a.test"]), "http://a.test/g/1?x", "http://a.test/h"),
        (Scope(Reach.HOST, ["*owl*"], hosts=["a.test"]), "http://a.test/x?owl", "http://b.test/owl"),
        (Scope(Reach.HOST, ["/?.html"], hosts=["a.test"]), "http://a.test/a.html", "http://a.test/aa.html"),
        (Scope(Reach.HOST, ["http://b.test/*"], hosts=["a.test"]), "http://b.test/x", "http://a.test/x"),
        (
            Scope(Reach.HOST, exclude=["*/print/*"], hosts=["a.test"]),
            "http://a.test/x",
            "http://a.test/print/x",
        ),
        (Scope(Reach.HOST, ["/g*"], ["*.pdf"], ["a.test"]), "http://a.test/g", "http://a.test/g.pdf"),
        (Scope(Reach.HOST, ["/(a+)+*"], hosts=["a.test"]), "http://a.test/(a+)+b", "http://a.test/aaaa"),
    ],
)
def test_scope(scope, inside, outside):
    """Hosts and patterns say which pages are read."""
    assert scope.holds(parse_url(inside))
    assert not scope.holds(parse_url(outside))


def test_what_is_no_pattern():
    """A pattern that could match nothing is refused."""
    with pytest.raises(PatternError, match="'gallery' does not"):
        Scope(Reach.HOST, ["gallery"])
