"""The images of the pages that a crawl would begin with, found without a job: for who wants to know before.

The same pages, fetched by the same rules; nothing is written, and no link is followed but where a page has moved.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from models.about import About
from models.frontier import NewPage, PendingPage
from models.opt_outs import OptOut
from models.pages import PageKind, PageState
from worker.address import parse_url
from worker.child import Child
from worker.sources.page_fetching import PageFetches
from worker.sources.page_reading import Brought
from worker.sources.page_url import page_key, page_pattern
from worker.sources.pages import given_pages
from worker.sources.scope import Scope, host_of

Image = tuple[str, About]


async def images_of_start_pages(
    child: Child, source: Mapping[str, Any], ignored: Collection[OptOut]
) -> tuple[list[Image], bool, str | None]:
    """Images in the order of their pages, whether the crawl would read more pages than these, and why some could
    not be read, for people.
    """
    given = [page for page in given_pages(source) if page.kind is PageKind.START]
    scope = Scope.of(source, [host_of(parse_url(page.url)) for page in given])
    obeyed = child.opt_outs.obeyed(ignored)
    pages = [_pending(page) for page in given]
    images: list[Image] = []
    problems: list[str] = []
    linked = bool(source.get("sitemaps"))
    for _ in range(child.settings.redirects_max + 1):
        brought = await PageFetches(child, scope, obeyed, pages).run() if pages else []
        for each in brought:
            images += each.images
            linked = linked or any(link.listed or 0 < link.depth <= source["depth"] for link in each.links)
            if each.page.state is PageState.FAILED:
                problems.append(
                    f"{each.source.url} could not be read: {each.page.detail or each.page.reason}"
                )
        missing = len(pages) - len(brought)
        if missing:
            problems.append(f"{missing:,} of its pages could not be read in time")
        pages = [page for each in brought for page in _moved(each)]
    shown = problems[:3] + ([f"and {len(problems) - 3:,} more"] if len(problems) > 3 else [])
    return images, linked, "; ".join(shown) or None


def _moved(brought: Brought) -> Iterator[PendingPage]:
    """Where a page is that is elsewhere."""
    if brought.page.state is PageState.PENDING:
        url = parse_url(brought.page.url)
        yield _pending(NewPage(page_key(url), PageKind.START, url.url, 0, brought.page.hops, None, b""))
    if brought.page.state is PageState.REDIRECTED:
        for link in brought.links:
            key, pattern = page_key(link.url), page_pattern(link.url)
            yield _pending(NewPage(key, link.kind, link.url.url, 0, link.hops, link.found_on, pattern))


def _pending(page: NewPage) -> PendingPage:
    return PendingPage(
        page.key, page.kind, page.url, page.depth, page.hops, page.found_on, page.pattern, 0, 0, 0, ()
    )
