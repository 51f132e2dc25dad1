"""Pages as a source: each step reads some that wait, and brings their images and the pages that they link to.

The frontier is in PostgreSQL (models/frontier.py). A step begins by marking what it takes, so that a page which
kills its worker is known, and ends in the transaction that advances the source.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from models.database import transaction
from models.frontier import (
    LOSSES_MAX,
    NewPage,
    PendingPage,
    Taken,
    Tries,
    add_pages,
    count_patterns,
    end_pages,
    known_pages,
    release_pages,
    start_urls,
    take_pages,
)
from models.outcomes import Reason
from models.page_counts import PageCounts, UnreadPage, count_pages, first_unread
from models.pages import PageKind, PageState
from models.seen import known_keys, url_key
from models.splitting import SplittableJob
from worker.address import parse_url
from worker.child import Child
from worker.sources.links import Budget, choose, worth_asking
from worker.sources.page_fetching import PageFetches
from worker.sources.page_reading import ROBOTS_PATH, Brought, failed, pack_image, unpack_image
from worker.sources.page_url import page_key, page_pattern
from worker.sources.scope import Scope, host_of
from worker.sources.source import Found, SourceWait, Step
from worker.writing import persist

PAGES_AT_ONCE = 100
"""So many pages one step begins with at most."""

Result = TypeVar("Result")


class PagesSource:
    """The source of one job, for one step."""

    async def step(self, child: Child, job: SplittableJob, wanted: int) -> Step:
        """Read some pages. Raises SourceWait when their hosts want to be left alone."""
        if not job.cursor:
            return begin(job)
        taken = await in_database(child, job, partial(take_pages, limit=PAGES_AT_ONCE))
        if not taken.pages:
            counts = await in_database(child, job, count_pages)
            first = None if counts.read else await in_database(child, job, first_unread)
            return Step((), job.cursor, why_ended(job, counts, first=first))
        scope = Scope.of(job.source, map(host_of, map(parse_url, await in_database(child, job, start_urls))))
        reading = StepOfPages(child, job, taken, scope, wanted)
        try:
            return await reading.run()
        except BaseException:
            await reading.release()
            raise


def begin(job: SplittableJob) -> Step:
    """The first step: pages that were given, and the robots.txt of their sites where sitemaps are wanted."""
    given = given_pages(job.source)
    budget = Budget.of(job.source, {})
    for page in given:
        budget.spend(host_of(parse_url(page.url)))
    commit = partial(add_pages, job_id=job.id, before=0, pages=given)
    return Step((), cursor_of(budget, 0), None, commit)


def given_pages(source: Mapping[str, Any]) -> list[NewPage]:
    """Where a crawl begins, each once."""
    given: dict[bytes, NewPage] = {}
    urls = [parse_url(text) for text in source["pages"]]
    kinds = [(url, PageKind.START) for url in urls]
    if source.get("sitemaps"):
        kinds += [(parse_url(f"{url.origin}{ROBOTS_PATH}"), PageKind.SITEMAP) for url in urls]
    for url, kind in kinds:
        page = NewPage(page_key(url), kind, url.url, 0, 0, None, page_pattern(url))
        given.setdefault(page.key, page)
    return list(given.values())


class StepOfPages:
    """One step over the pages that it took."""

    def __init__(self, child: Child, job: SplittableJob, taken: Taken, scope: Scope, wanted: int) -> None:
        self.child = child
        self.job = job
        self.taken = taken
        self.wanted = wanted
        self.scope = scope
        self.budget = Budget.of(job.source, job.cursor)
        self.rank = int(job.cursor["found"])
        lost = [page for page in taken.pages if page.losses >= LOSSES_MAX and not page.rest]
        self.known = [failed(page, Reason.WORKER_LOST, "workers were lost over it") for page in lost]
        self.known += [of_rest(page) for page in taken.pages if page.rest]
        done = {brought.source.key for brought in self.known}
        pages = [page for page in taken.pages if page.key not in done]
        obeyed = child.opt_outs.obeyed(taken.ignored_opt_outs)
        self.fetches = PageFetches(child, scope, obeyed, pages)

    async def run(self) -> Step:
        """Fetch, and put together what is to be written."""
        fetched = await self.fetches.run() if self.fetches.pages else []
        brought = sorted([*self.known, *fetched], key=self._place)
        if not brought:
            waits = max(1.0, self.fetches.waits_seconds)
            await self.release()
            raise SourceWait(waits, "the hosts of its pages want to be left alone", ours=True)
        links = worth_asking((link for each in brought for link in each.links), self.scope, self.budget)
        images = {url_key(url) for each in brought for url, _ in each.images}
        known, seen, patterns = await in_database(
            self.child,
            self.job,
            lambda session, job_id: (
                known_pages(session, job_id, links),
                known_keys(session, job_id, images),
                count_patterns(session, job_id, {page_pattern(link.url) for link in links.values()}),
            ),
        )
        before = self.budget.pages
        new = choose(links, known, patterns, self.budget)
        mark_fresh(brought, new, seen)
        found = self.found(brought)
        left = self.unread(brought)
        pending = (
            self.taken.pending - sum(each.page.state is not PageState.PENDING for each in brought) + len(new)
        )
        ended = None
        if not pending:
            counts = counted(await in_database(self.child, self.job, count_pages), brought)
            # When nothing could be read, the next step says why: what this one brought is written then.
            ended = why_ended(self.job, counts, self.budget) if counts.read else None

        def commit(session: Session) -> None:
            release_pages(session, self.job.id, left)
            end_pages(session, self.job.id, [each.page for each in brought])
            add_pages(session, self.job.id, before, new)

        return Step(found, cursor_of(self.budget, self.rank), ended, commit)

    def found(self, brought: Sequence[Brought]) -> list[Found]:
        """Images in the order of their pages, as many as are wanted; what is left stays with its page."""
        found: list[Found] = []
        for each in brought:
            room = self.wanted - len(found)
            for url, about in each.images[:room]:
                self.rank += 1
                found.append(Found(url, self.rank, about))
            rest = each.images[room:]
            if rest:
                each.page.state = PageState.PENDING
                each.page.rest = tuple(pack_image(url, about) for url, about in rest)
        return found

    def unread(self, brought: Iterable[Brought]) -> dict[bytes, Tries]:
        """Pages that the step took and did not read, with what was tried."""
        done = {each.source.key for each in brought}
        return {page.key: self.fetches.tries(page) for page in self.fetches.pages if page.key not in done}

    async def release(self) -> None:
        """Nothing was read after all. Written to its end, even when the step is cancelled."""
        pages = {page.key: Tries() for page in self.taken.pages} | self.unread(())
        writing = asyncio.ensure_future(
            in_database(self.child, self.job, partial(release_pages, tried=pages))
        )
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(writing)

    def _place(self, brought: Brought) -> int:
        return next(place for place, page in enumerate(self.taken.pages) if page.key == brought.source.key)


def of_rest(page: PendingPage) -> Brought:
    """A page that was read before, and whose images are wanted now."""
    images = [unpack_image(packed) for packed in page.rest]
    brought = failed(page, "", "")
    brought.page.state, brought.page.reason, brought.page.detail = PageState.READ, None, None
    brought.page.images, brought.images = len(images), images
    return brought


def mark_fresh(brought: Iterable[Brought], new: Iterable[NewPage], seen: set[bytes]) -> None:
    """Which pages brought an image that is new, or a page of another pattern than their own."""
    elsewhere = {(page.found_on, page.pattern) for page in new}
    here = set(seen)
    for each in brought:
        keys = {url_key(url) for url, _ in each.images}
        others = {pattern for url, pattern in elsewhere if url == each.source.url}
        each.page.fresh = bool(keys - here or others - {each.source.pattern})
        here |= keys


def cursor_of(budget: Budget, found: int) -> dict[str, Any]:
    """Where the source goes on. ``pages`` are known, ``found`` images were, ``left_out`` links by why."""
    return {
        "pages": budget.pages,
        "found": found,
        "hosts": dict(budget.hosts),
        "left_out": dict(budget.left_out),
    }


def counted(counts: PageCounts, brought: Iterable[Brought]) -> PageCounts:
    """The counts as they will be."""
    read = counts.read + sum(each.page.state is PageState.READ for each in brought)
    failures = dict(counts.failed)
    for each in brought:
        if each.page.state is PageState.FAILED:
            reason = str(each.page.reason)
            failures[reason] = failures.get(reason, 0) + 1
    return PageCounts(0, read, counts.redirected, counts.refused, failures)


def why_ended(
    job: SplittableJob, counts: PageCounts, budget: Budget | None = None, first: UnreadPage | None = None
) -> str:
    """Why the source ends, for people. ``first`` could not be read, and so could no other."""
    source = job.source
    left_out = budget.left_out if budget else Budget.of(source, job.cursor).left_out
    if first is not None:
        return why_nothing_was_read(counts, first, endless=bool(left_out["trap"]))
    if left_out["pages"]:
        why = f"the limit of {source['max_pages']:,} pages is reached"
    elif left_out["host"]:
        why = f"the limit of {source['max_host_pages']:,} pages of one host is reached"
    else:
        why = f"every page within depth {source['depth']} was read"
    failures = sum(counts.failed.values())
    notes = [
        f"{failures:,} could not be" if failures else "",
        "endless ones were left" if left_out["trap"] else "",
    ]
    return "; ".join([why, *filter(None, notes)])


def why_nothing_was_read(counts: PageCounts, first: UnreadPage, *, endless: bool) -> str:
    """What was wrong with all pages, and with the first of them."""
    if first.moved_to is None:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in counts.failed.items())
        return f"no page could be read: {reasons}; first {first.url}: {first.detail}"
    where = f"to {first.moved_to}, which looks endless and is not followed" if endless else "in a circle"
    return f"no page could be read: {first.url} is redirected {where}"


async def in_database(child: Child, job: SplittableJob, act: Callable[..., Result]) -> Result:
    """One transaction of a session and the job's id, in the database thread, whatever the connection does."""

    def write(_unsure: bool) -> Result:
        with transaction(child.engine) as session:
            return act(session, job_id=job.id)

    return await child.in_database(partial(persist, write, job=job.id))
