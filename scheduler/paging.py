"""From the words of a command to a crawl by pages: where it begins and how far it goes. Connects to nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.jobs import SourceKind
from scheduler.copying import CANDIDATES_MAX, RequestError
from worker.address import parse_url
from worker.errors import AddressError
from worker.sources.page_url import page_key
from worker.sources.scope import PatternError, Reach, Scope

DEFAULT_DEPTH = 0
DEFAULT_PAGES_MAX = 10_000
STARTS_MAX = 1_000
PATTERNS_MAX = 100
DEPTH_MAX = 1_000
PAGES_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class PageCrawl:
    """The pages that a job begins with, and which of those they link to it reads."""

    pages: tuple[str, ...]
    depth: int
    reach: Reach
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    pages_max: int
    host_pages_max: int
    sitemaps: bool

    kind = SourceKind.PAGES
    candidates = 0
    detail = None
    max_images = CANDIDATES_MAX

    @property
    def title(self) -> str:
        """What its job is called."""
        return ", ".join(page.partition("://")[2].rstrip("/") for page in self.pages)

    @property
    def what(self) -> str:
        """What its job does."""
        begin = self.pages[0] if len(self.pages) == 1 else f"{len(self.pages)} pages"
        sitemaps = ", the pages of its sitemaps" if self.sitemaps else ""
        return f"reads {begin}{sitemaps}" + (f" and pages within depth {self.depth}" if self.depth else "")

    @property
    def source(self) -> dict[str, Any]:
        """The job's source."""
        return {
            "pages": list(self.pages),
            "depth": self.depth,
            "reach": self.reach.value,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "max_pages": self.pages_max,
            "max_host_pages": self.host_pages_max,
            "sitemaps": self.sitemaps,
        }

    @property
    def content(self) -> list[object]:
        """What tells whether two crawls are the same."""
        return [self.source]


def make_page_crawl(
    pages: Sequence[str],
    *,
    depth: int | None = None,
    reach: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_pages: int | None = None,
    max_host_pages: int | None = None,
    sitemaps: bool = False,
) -> PageCrawl:
    """Raises RequestError for pages that cannot be asked for, and for limits and patterns that are none."""
    given: dict[bytes, str] = {}
    for text in pages:
        try:
            url = parse_url(text)
        except AddressError as error:
            raise RequestError(f"--page {text}: {error.detail}.") from None
        given.setdefault(page_key(url), url.url)
    if len(given) > STARTS_MAX:
        raise RequestError(f"One job begins with at most {STARTS_MAX:,} pages: name a sitemap of more.")
    if len(include) + len(exclude) > PATTERNS_MAX:
        raise RequestError(f"One job takes at most {PATTERNS_MAX} patterns.")
    _check("--depth", depth, 0, DEPTH_MAX)
    _check("--max-pages", max_pages, len(given), PAGES_MAX)
    _check("--max-host-pages", max_host_pages, 1, PAGES_MAX)
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        try:
            Scope(Reach.HOST, patterns)
        except PatternError as error:
            raise RequestError(f"{option}: {error}.") from None
    pages_max = max_pages or max(DEFAULT_PAGES_MAX, len(given))
    return PageCrawl(
        tuple(given.values()),
        DEFAULT_DEPTH if depth is None else depth,
        Reach(reach or Reach.HOST),
        tuple(include),
        tuple(exclude),
        pages_max,
        max_host_pages or pages_max,
        sitemaps,
    )


def _check(option: str, number: int | None, least: int, most: int) -> None:
    if number is not None and not least <= number <= most:
        raise RequestError(f"{option} is {least:,} to {most:,}, not {number:,}.")
