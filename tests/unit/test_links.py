"""Which links a crawl follows: none beyond its limits, and few of what has no end."""

from collections import Counter

import pytest

from models.frontier import PatternCount
from models.pages import PageKind
from worker.address import parse_url
from worker.sources.links import (
    DRY_PAGES_MAX,
    HOSTS_MAX,
    PATTERN_PAGES_MAX,
    Budget,
    choose,
    worth_asking,
)
from worker.sources.page_reading import Link
from worker.sources.page_url import page_pattern
from worker.sources.scope import Reach, Scope

SITE = "http://site.test"


def link(path: str, *, depth: int = 1, listed: bool = False, kind: PageKind = PageKind.PAGE) -> Link:
    """A link of the home page."""
    url = path if path.startswith("http") else SITE + path
    return Link(parse_url(url), kind, depth, f"{SITE}/", listed=listed)


def budget(**limits) -> Budget:
    """A budget with room for a hundred pages."""
    return Budget(**({"depth": 2, "pages_max": 100, "host_pages_max": 100} | limits))


def worth(links, spent: Budget) -> list[str]:
    """What may be followed in the scope of the site."""
    found = worth_asking(links, Scope(Reach.HOST, hosts=["site.test"]), spent)
    return [each.url.url.removeprefix(SITE) for each in found.values()]


def test_links_are_held_to_scope_depth_and_sense() -> None:
    """One link for each page within scope and depth; what was left out is counted by why."""
    spent = budget()
    links = [
        link("/a"),
        link("/a?utm_source=x"),
        link("/b", depth=3),
        link("/x/x/x/x"),
        link("http://b.test/"),
    ]
    links.append(link("http://cdn.test/sitemap.xml", kind=PageKind.SITEMAP, depth=3))
    assert worth(links, spent) == ["/a", "http://cdn.test/sitemap.xml"]
    assert spent.left_out == Counter(depth=1, trap=1)


@pytest.mark.parametrize(
    ("limits", "chosen", "left_out"),
    [
        ({}, 9, {}),
        ({"pages_max": 4}, 4, {"pages": 5}),
        ({"host_pages_max": 3}, 3, {"host": 6}),
        ({"pages": 95}, 5, {"pages": 4}),
        ({"hosts": Counter({f"{number}.test": 1 for number in range(HOSTS_MAX)})}, 0, {"host": 9}),
    ],
)
def test_budget(limits, chosen, left_out) -> None:
    """Pages are taken in their order as long as there is room: for the job, for their host, for hosts."""
    spent = budget(**limits)
    links = worth_asking([link(f"/{n}") for n in range(10)], Scope(Reach.HOST, hosts=["site.test"]), spent)
    known = {next(iter(links))}
    assert [page.url for page in choose(links, known, {}, spent)] == [
        f"{SITE}/{n}" for n in range(1, chosen + 1)
    ]
    assert spent.left_out == Counter(left_out)


@pytest.mark.parametrize(
    ("count", "listed", "chosen"),
    [
        (PatternCount(PATTERN_PAGES_MAX - 3, 0), False, 3),
        (PatternCount(DRY_PAGES_MAX, DRY_PAGES_MAX - 1), False, 5),
        (PatternCount(DRY_PAGES_MAX, DRY_PAGES_MAX), False, 0),
        (PatternCount(PATTERN_PAGES_MAX, DRY_PAGES_MAX), True, 5),
    ],
)
def test_patterns(count, listed, chosen) -> None:
    """A pattern has an end: after so many pages, or so many that brought nothing new. What a site lists has one."""
    spent = budget()
    links = worth_asking(
        [link(f"/day/{n}", listed=listed) for n in range(5)], Scope(Reach.HOST, hosts=["site.test"]), spent
    )
    pattern = page_pattern(parse_url(f"{SITE}/day/77"))
    assert len(choose(links, set(), {pattern: count}, spent)) == chosen
    assert spent.left_out["trap"] == 5 - chosen
