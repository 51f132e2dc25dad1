"""Which links of pages a crawl follows: within its scope, depth and limits, and out of traps. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from models.frontier import NewPage, PatternCount
from models.pages import PageKind
from worker.sources.page_reading import Link
from worker.sources.page_url import leads_nowhere, page_key, page_pattern
from worker.sources.scope import Scope, host_of

PATTERN_PAGES_MAX = 5_000
"""So many pages of one pattern are read at most."""
DRY_PAGES_MAX = 100
"""So many pages of one pattern in a row that bring nothing new end it: a calendar has no last month."""
HOSTS_MAX = 1_000
"""So many hosts one crawl may come to."""
NO_PATTERN = PatternCount(0, 0)


@dataclass(slots=True)
class Budget:
    """What a crawl may still take up, counted as it goes on. ``left_out`` counts links by why they were not."""

    depth: int
    pages_max: int
    host_pages_max: int
    pages: int = 0
    hosts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, source: Mapping[str, Any], cursor: Mapping[str, Any]) -> Self:
        """The budget of a job's source, as far as it was spent."""
        return cls(
            source["depth"],
            source["max_pages"],
            source["max_host_pages"],
            cursor.get("pages", 0),
            Counter(cursor.get("hosts", {})),
            Counter(cursor.get("left_out", {})),
        )

    def spend(self, host: str, *, moved: bool = False) -> bool:
        """Take a page of a host, if there is room; one that has ``moved`` had it already."""
        if not moved and self.pages >= self.pages_max:
            self.left_out["pages"] += 1
        elif not moved and (
            self.hosts[host] >= self.host_pages_max
            or (host not in self.hosts and len(self.hosts) >= HOSTS_MAX)
        ):
            self.left_out["host"] += 1
        else:
            self.pages += 1
            self.hosts[host] += 1
            return True
        return False


def worth_asking(links: Iterable[Link], scope: Scope, budget: Budget) -> dict[bytes, Link]:
    """Links that may be followed, by key; the first of each page counts. Sitemaps may be on any host: what they
    name is held to the scope.
    """
    found: dict[bytes, Link] = {}
    for link in links:
        if link.kind is PageKind.PAGE and not scope.holds(link.url):
            continue
        if link.kind is PageKind.PAGE and link.depth > budget.depth:
            budget.left_out["depth"] += 1
        elif leads_nowhere(link.url):
            budget.left_out["trap"] += 1
        else:
            found.setdefault(page_key(link.url), link)
    return found


def choose(
    links: Mapping[bytes, Link], known: set[bytes], patterns: Mapping[bytes, PatternCount], budget: Budget
) -> list[NewPage]:
    """New pages, within the budget; none of a pattern that is used up, unless the site lists it itself."""
    taken: Counter[bytes] = Counter()
    chosen = []
    for key, link in links.items():
        if key in known:
            continue
        pattern = page_pattern(link.url)
        count = patterns.get(pattern, NO_PATTERN)
        used_up = count.dry >= DRY_PAGES_MAX or count.pages + taken[pattern] >= PATTERN_PAGES_MAX
        if used_up and not link.listed:
            budget.left_out["trap"] += 1
        elif budget.spend(host_of(link.url), moved=link.hops > 0):
            taken[pattern] += 1
            chosen.append(
                NewPage(key, link.kind, link.url.url, link.depth, link.hops, link.found_on, pattern)
            )
    return chosen
