"""Some pages fetched at once, politely, as pictures are: owners asked first, hosts left alone when they want it.

A redirect ends a page here: where it leads to is a page of its own. Knows no rows.
"""

import time
from collections.abc import Sequence

import structlog

from models.about import About
from models.frontier import PendingPage, ReadPage, Tries
from models.opt_outs import OptOut
from models.outcomes import Candidate, Reason
from models.pages import PageKind, PageState
from worker.address import ParsedURL
from worker.candidate import take_turn
from worker.child import Child
from worker.errors import AddressError, CandidateError
from worker.fetch import Fetched, Headers, Hooks, admit, step
from worker.host import Host, Turn
from worker.memory import bounded_memory
from worker.opt_outs import Heed
from worker.sources.charset import media_type
from worker.sources.page_reading import (
    NOT_A_PAGE,
    PAGE_TYPES,
    ROBOTS_PATH,
    SITEMAP_TYPES,
    Brought,
    Link,
    failed,
    read_body,
)
from worker.sources.page_url import page_key
from worker.sources.scope import Scope, place_of
from worker.transfers import Transfers
from worker.visit import Visit
from worker.watchdog import Work

ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.5"
PAGE_BYTES_MAX = 10 * 1024 * 1024
SITEMAP_BYTES_MAX = 20 * 1024 * 1024
PARSE_SECONDS_MAX = 10.0
PARSE_BYTES_MAX = 768 * 1024 * 1024
"""A page of ten megabytes that is nothing but tags takes 300."""
AT_ONCE = 32
STEP_SECONDS = 8.0
"""After so long no page is begun any more."""
IDLE_SECONDS = 1.0
"""When nothing has run for so long, hosts are waited for, and the step ends."""
TICK_SECONDS = 0.1
STOP_SECONDS_MAX = 2.0

log = structlog.get_logger()


class OtherContentError(CandidateError):
    """The response is no page, and its body is not read; an image is a candidate."""

    def __init__(self, kind: str, http_status: int | None = None) -> None:
        super().__init__(Reason.NOT_AN_IMAGE, f"it is {kind}", transient=False, http_status=http_status)
        self.is_image = kind.startswith("image/") and not kind.startswith("image/svg")


class PageFetcher:
    """Asks owners and hosts for one page."""

    def __init__(self, child: Child, obeyed: frozenset[OptOut], kind: PageKind) -> None:
        self._child = child
        self._obeyed = obeyed
        self._kind = kind
        bytes_max = PAGE_BYTES_MAX if kind is PageKind.PAGE else SITEMAP_BYTES_MAX
        self._settings = child.settings.model_copy(
            update={"image_bytes_max": min(bytes_max, child.settings.image_bytes_max)}
        )

    async def admit(self, visit: Visit, heed: Heed) -> bool:
        """Ask the owner; robots.txt itself may always be read (RFC 9309, section 2.2.2). Raises CandidateError."""
        if self._kind is PageKind.SITEMAP and place_of(visit.target) == ROBOTS_PATH:
            return True
        return await admit(visit, self._child.opt_outs.hooks(self._obeyed, heed))

    async def step(self, visit: Visit) -> Fetched | None:
        """Make one request. Raises CandidateError."""
        hooks = Hooks(header=self._check_header)
        return await step(self._child.transport, visit, self._settings, hooks=hooks, accept=ACCEPT)

    def close(self) -> None:
        """Nothing to end."""

    def _check_header(self, url: ParsedURL, headers: Headers) -> None:
        """Let the body of a page be read. What X-Robots-Tag says of a page is about its images and links."""
        kind = media_type(headers.get("Content-Type", ""))
        if kind not in (PAGE_TYPES if self._kind is PageKind.PAGE else SITEMAP_TYPES):
            raise OtherContentError(kind)
        self._child.opt_outs.check_header(url, headers, self._obeyed & {OptOut.TDM})


class PageFetches:
    """Pages on their way, each to what it brings."""

    def __init__(
        self, child: Child, scope: Scope, obeyed: frozenset[OptOut], pages: Sequence[PendingPage]
    ) -> None:
        self.child = child
        self.scope = scope
        self.pages = pages
        self.visits: dict[int, Visit] = {}
        self.obeyed = obeyed
        self.fetchers = {kind: PageFetcher(child, obeyed, kind) for kind in PageKind}
        candidates = [Candidate(place, page.url, place + 1) for place, page in enumerate(pages)]
        self.transfers: Transfers[Brought] = Transfers(candidates, self, child.politeness, AT_ONCE)
        self.waits_seconds = 0.0
        self.parsed = ""
        """The page that the decoder thread has, or had last."""

    async def run(self) -> list[Brought]:
        """Fetch for STEP_SECONDS; what is under way then ends. In the order of the pages."""
        keeper = self.child.politeness.join(self.transfers.wake)
        ends_at = time.monotonic() + STEP_SECONDS
        busy_at = time.monotonic()
        try:
            self.transfers.start()
            while not await self.transfers.wait(TICK_SECONDS):
                if keeper.done():
                    keeper.result()
                if self.child.watchdog.overdue():
                    log.error("page_stuck", url=self.parsed, seconds=PARSE_SECONDS_MAX)
                    self.child.end_stuck(
                        f"{self.parsed} cannot be read: its parser is not done with it after "
                        f"{PARSE_SECONDS_MAX:g} s"
                    )
                now = time.monotonic()
                busy_at = now if self.transfers.running else busy_at
                if now > ends_at or now > busy_at + IDLE_SECONDS:
                    self.waits_seconds = self.transfers.idle_seconds()
                    self.transfers.start_no_more()
                    if not self.transfers.running:
                        break
        finally:
            await self.transfers.stop(STOP_SECONDS_MAX)
            await self.child.politeness.leave(self.transfers.wake)
        order = {page.key: place for place, page in enumerate(self.pages)}
        return sorted(self.transfers.take(), key=lambda brought: order[brought.source.key])

    def tries(self, page: PendingPage) -> Tries:
        """What was tried of a page in this step."""
        visit = self.visits.get(self.pages.index(page))
        if visit is None:
            return Tries()
        return Tries(visit.attempts - page.attempts, visit.refusals - page.refusals)

    def begin(self, candidate: Candidate) -> Visit | Brought:
        """A page's way begins, or ends already because of its URL."""
        page = self.pages[candidate.position]
        try:
            visit = Visit(candidate, self.child.transport.memory.lease())
        except AddressError as error:
            return failed(page, error.reason, error.detail)
        visit.attempts, visit.refusals = page.attempts, page.refusals
        self.visits[candidate.position] = visit
        return visit

    async def crawl_visit(self, visit: Visit, turn: Turn) -> Brought | float:
        """Use one turn of a page: what it brings, or in how many seconds it wants another."""
        page = self.pages[visit.candidate.position]
        try:
            fetched = await take_turn(
                self.fetchers[page.kind], visit, turn, self.child.settings.host_patience_seconds
            )
            if fetched is None:
                return self.redirected(page, visit) if visit.redirects else 0.0
            return await self.child.in_decoder(self.read, page, fetched)
        except OtherContentError as error:
            return self.other(page, error)
        except CandidateError as error:
            seconds = visit.again_in(error, self.child.settings, self.child.random)
            if seconds is not None:
                return seconds
            return failed(
                page, error.reason, error.detail, http_status=error.http_status, evidence=error.evidence
            )
        except Exception as error:
            log.exception("page_broke_off", url=page.url)
            return failed(page, Reason.PROTOCOL, f"unexpected {type(error).__name__}: {error}")
        finally:
            visit.lease.release()

    def closed(self, visit: Visit, host: Host) -> Brought:
        """A page whose host nobody asks at present."""
        page = self.pages[visit.candidate.position]
        return failed(page, host.why, f"{host.name} is not asked for a while: {host.detail}")

    def read(self, page: PendingPage, fetched: Fetched) -> Brought:
        """Read a body, in the decoder thread. Its parser may be killed by it, or hang: then this process ends."""
        self.parsed = page.url
        with self.child.watchdog.timing(Work.DECODE, PARSE_SECONDS_MAX), bounded_memory(PARSE_BYTES_MAX):
            return read_body(page, fetched, self.child.opt_outs.token, self.obeyed)

    def redirected(self, page: PendingPage, visit: Visit) -> Brought:
        """A page that is elsewhere: the page there is read instead, if the crawl may go there. One that was given
        may lead anywhere.
        """
        target, hops = visit.target, page.hops + 1
        ended = ReadPage(
            page.key, PageState.REDIRECTED, page.url, page.hops, page.attempts, detail=target.url
        )
        if hops > self.child.settings.redirects_max:
            return failed(page, Reason.REDIRECTS, f"more than {self.child.settings.redirects_max} redirects")
        if page_key(target) == page.key:  # It only says a session more, or a slash.
            ended.state, ended.url, ended.hops, ended.detail = PageState.PENDING, target.url, hops, None
            return Brought(ended, page)
        link = Link(target, page.kind, page.depth, page.url, hops)
        if page.kind is PageKind.PAGE and not self.scope.holds(target):
            ended.detail = f"{target.url} is out of scope"
            return Brought(ended, page)
        return Brought(ended, page, links=[link])

    def other(self, page: PendingPage, error: OtherContentError) -> Brought:
        """What is no page: an image is a candidate by itself."""
        if not error.is_image or page.kind is PageKind.SITEMAP:
            return failed(page, NOT_A_PAGE, error.detail, http_status=error.http_status)
        ended = ReadPage(
            page.key,
            PageState.READ,
            page.url,
            page.hops,
            page.attempts,
            http_status=error.http_status,
            images=1,
        )
        return Brought(ended, page, [(page.url, About(source_page=page.found_on))])
