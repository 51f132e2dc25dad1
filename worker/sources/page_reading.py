"""From the body of a page to what it brings: images, links, and what its owner says. Pure; runs in a thread."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.about import About
from models.frontier import PendingPage, ReadPage
from models.opt_outs import Declaration, Evidence, OptOut
from models.outcomes import Reason
from models.pages import PageKind, PageState
from worker.address import ParsedURL, parse_url
from worker.errors import AddressError
from worker.fetch import Fetched
from worker.reservations import forbids_following, refused_for
from worker.sources.charset import media_type
from worker.sources.html import Page, PageImage, read_page
from worker.sources.nesting import NestingError
from worker.sources.sitemap import Sitemap, read_sitemap, read_text_sitemap, sitemaps_of_robots

NOT_A_PAGE = "not_a_page"
OUT_OF_SCOPE = "out_of_scope"
"""Reasons of pages that no candidate has."""
PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml", ""})
SITEMAP_TYPES = PAGE_TYPES | {
    *("text/plain", "text/xml", "application/xml", "application/rss+xml", "application/atom+xml"),
    *("application/gzip", "application/x-gzip", "application/octet-stream", "binary/octet-stream"),
}
ROBOTS_PATH = "/robots.txt"
SITEMAP_PATH = "/sitemap.xml"
"""Where a site's sitemap is by custom, if its robots.txt names none."""
SITEMAP_DEPTH_MAX = 5


@dataclass(frozen=True, slots=True)
class Link:
    """A page that another one names or redirects to; ``listed`` by a sitemap, so there is an end to such."""

    url: ParsedURL
    kind: PageKind
    depth: int
    found_on: str
    hops: int = 0
    listed: bool = False


@dataclass(slots=True)
class Brought:
    """What became of a page, and what it brings: images as URL and what is known of each, and links."""

    page: ReadPage
    source: PendingPage
    images: list[tuple[str, About]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def pack_image(url: str, about: About) -> dict[str, Any]:
    """An image as JSON can hold it."""
    return {"url": url, **about.document}


def unpack_image(packed: Mapping[str, Any]) -> tuple[str, About]:
    """Inverse of pack_image."""
    known = dict(packed)
    return known.pop("url"), About(**known)


def failed(
    source: PendingPage,
    reason: str,
    detail: str,
    *,
    http_status: int | None = None,
    evidence: Evidence | None = None,
) -> Brought:
    """A page that brings nothing."""
    document = evidence.document if evidence else None
    page = ReadPage(
        source.key,
        PageState.FAILED,
        source.url,
        source.hops,
        source.attempts,
        reason,
        http_status,
        detail,
        document,
    )
    return Brought(page, source)


def read_body(source: PendingPage, fetched: Fetched, token: str, obeyed: frozenset[OptOut]) -> Brought:
    """What a page brings. ``token`` is our name for owners, ``obeyed`` what of them the job obeys."""
    url = parse_url(fetched.final_url)
    page = ReadPage(
        source.key,
        PageState.READ,
        source.url,
        source.hops,
        source.attempts,
        http_status=fetched.http_status,
    )
    if source.kind is not PageKind.PAGE:
        sitemap = _find_sitemap(source, url, fetched)
        if sitemap is not None:
            return _of_sitemap(Brought(page, source), sitemap)
    if source.kind is PageKind.SITEMAP or media_type(fetched.content_type) not in PAGE_TYPES:
        wanted = "no sitemap" if source.kind is PageKind.SITEMAP else "no web page"
        return failed(source, NOT_A_PAGE, f"it is {wanted}", http_status=fetched.http_status)
    try:
        read = read_page(url, fetched.body, fetched.content_type, token)
    except NestingError as error:
        return failed(source, Reason.TOO_LARGE, str(error), http_status=fetched.http_status)
    return _of_page(Brought(page, source), read, url, fetched, token, obeyed)


def _of_page(
    brought: Brought, read: Page, url: ParsedURL, fetched: Fetched, token: str, obeyed: frozenset[OptOut]
) -> Brought:
    """Images, unless their owner refuses them, and links, unless they may not be followed."""
    tags = fetched.headers.getall("X-Robots-Tag", ()) if OptOut.X_ROBOTS_TAG in obeyed else ()
    nofollow = OptOut.X_ROBOTS_TAG in obeyed and (read.nofollow or forbids_following(tags, token))
    if not nofollow:
        depth = brought.source.depth + 1
        brought.links = [
            Link(parse_url(link), PageKind.PAGE, depth, brought.source.url) for link in read.links
        ]
    evidence = _refusal(read, url, tags, token, obeyed)
    brought.page.images = len(read.images)
    if evidence is not None:
        brought.page.reason, brought.page.evidence = Reason.OPT_OUT, evidence.document
        brought.page.detail = f"its images may not be taken: {evidence.line}"
    else:
        brought.images = [(image.url, _about(image, brought.source.url, read.title)) for image in read.images]
    return brought


def _refusal(
    read: Page, url: ParsedURL, tags: list[str] | tuple[()], token: str, obeyed: frozenset[OptOut]
) -> Evidence | None:
    """What the images of a page rest on, if their owner refuses them: a header, or an element of the page."""
    now = datetime.datetime.now(datetime.UTC)
    refused = refused_for(tags, token)
    if refused is not None:
        return Evidence(
            Declaration.X_ROBOTS_TAG, url.url, now, f"X-Robots-Tag: {refused[0]}", agent=refused[1]
        )
    for refusal in read.refusals:
        if (OptOut.TDM if refusal.tdm else OptOut.X_ROBOTS_TAG) in obeyed:
            rule = Declaration.TDM_META if refusal.tdm else Declaration.ROBOTS_META
            return Evidence(rule, url.url, now, refusal.line, agent=refusal.agent)
    return None


def _about(image: PageImage, page_url: str, page_title: str | None) -> About:
    texts = {"alt": image.alt, "title": image.title, "page_title": page_title}
    return About(
        source_page=page_url,
        licence=image.licence,
        creator=image.creator,
        metadata={name: text for name, text in texts.items() if text},
    )


def _find_sitemap(source: PendingPage, url: ParsedURL, fetched: Fetched) -> Sitemap | None:
    path = url.url.partition("://")[2].partition("/")[2].partition("?")[0]
    if source.kind is PageKind.SITEMAP and f"/{path}" == ROBOTS_PATH:
        named = sitemaps_of_robots(fetched.body) or [f"{url.origin}{SITEMAP_PATH}"]
        return Sitemap(sitemaps=named)
    sitemap = read_sitemap(fetched.body)
    if sitemap is None and path.endswith((".txt", ".txt.gz")):
        return read_text_sitemap(fetched.body)
    return sitemap


def _of_sitemap(brought: Brought, sitemap: Sitemap) -> Brought:
    """Pages that a sitemap names are as near as those that were given; other sitemaps are a step further."""
    further = brought.source.depth + 1
    named = [(page, PageKind.PAGE, 0) for page in sitemap.pages]
    if further <= SITEMAP_DEPTH_MAX:
        named += [(other, PageKind.SITEMAP, further) for other in sitemap.sitemaps]
    for text, kind, depth in named:
        target = _parsed(text)
        if target is not None:
            brought.links.append(Link(target, kind, depth, brought.source.url, listed=True))
    for image in sitemap.images:
        target = _parsed(image.url)
        if target is not None:
            texts = {"title": image.title, "caption": image.caption}
            metadata = {name: text for name, text in texts.items() if text}
            about = About(source_page=image.page, licence=image.licence, metadata=metadata)
            brought.images.append((target.url, about))
    brought.page.images = len(brought.images)
    brought.page.detail = sitemap.broken and f"not read to its end: {sitemap.broken}"
    return brought


def _parsed(text: str) -> ParsedURL | None:
    try:
        return parse_url(text.replace(" ", "%20"))
    except AddressError:
        return None
