"""A page of HTML as a crawler needs it: the images that it shows, the pages it links to, what its owner says.

Pure: it never fetches, and knows no job. The parser is Lexbor's, which builds the tree that browsers build.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from worker.address import ParsedURL, resolve_location
from worker.errors import AddressError
from worker.reservations import RESERVATION, forbids_following, refused_for, reserves
from worker.sources.attributes import background_images, largest, read_srcset
from worker.sources.charset import decode
from worker.sources.json_ld import Described, described_images
from worker.sources.nesting import check_nesting

IMAGES_MAX = 20_000
LINKS_MAX = 20_000
"""No more of one page are taken."""
TEXT_CHARACTERS_MAX = 1000
"""Of an alternative text or title; more is cut off."""

_IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "avif"})
# Where pages keep an image's URL until a script moves it to src or srcset. The first that is there counts.
_LAZY_SOURCES = (
    "data-src",
    "data-original",
    "data-lazy-src",
    "data-lazy",
    "data-original-src",
    "data-full-src",
)
_LAZY_SETS = ("data-srcset", "data-lazy-srcset", "data-original-set")
_LAZY_BACKGROUNDS = ("data-bg", "data-background", "data-background-image")
_BACKGROUNDS = frozenset({"style", "background", *_LAZY_BACKGROUNDS})
_META_IMAGES = frozenset({"og:image", "og:image:url", "twitter:image", "twitter:image:src"})
_FRAMES = frozenset({"iframe", "frame"})
_LINKED = frozenset({"next", "prev", "canonical"})
_LOOKED_AT = ", ".join(
    (
        "base[href], title, meta[content], link[href], script[type], a[href], area[href], iframe[src], frame[src]",
        "img, amp-img, source, image, video[poster], input[src], style, [style], [background]",
        ", ".join(f"[{name}]" for name in _LAZY_BACKGROUNDS),
    )
)
_REMOVED = re.compile(r"[\t\n\r]")  # From every URL in a document (URL standard, section 4.4).


@dataclass(frozen=True, slots=True)
class PageImage:
    """An image that a page shows or links to: its URL, and what the page tells of it."""

    url: str
    alt: str | None = None
    title: str | None = None
    licence: str | None = None
    creator: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """By what element the owner refuses the images of a page: the element as it stands, and for whom."""

    line: str
    agent: str
    tdm: bool = False


@dataclass(slots=True)
class Page:
    """What a page holds, in the order of the document; no URL twice."""

    title: str | None = None
    images: list[PageImage] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    nofollow: bool = False
    """Its meta elements let nobody follow its links."""
    refusals: list[Refusal] = field(default_factory=list)
    """Its meta elements against taking its images."""


def read_page(url: ParsedURL, body: bytes, content_type: str, token: str) -> Page:
    """Read a page that ``url`` gave. ``token`` is the name by which its owner may address us.

    Raises NestingError for one that no parser gets through in a bounded time.
    """
    text = decode(body, content_type)
    check_nesting(text)
    return _Reader(url, token).read(LexborHTMLParser(text))


def names_image(url: str) -> bool:
    """Whether a URL's path ends like the name of an image file."""
    path = url.partition("?")[0].partition("#")[0]
    return path[-6:].lower().rpartition(".")[2] in _IMAGE_SUFFIXES and "." in path[-6:]


class _Reader:
    """One pass over one page."""

    def __init__(self, url: ParsedURL, token: str) -> None:
        self.base = url
        self.token = token
        self.page = Page()
        self._images: set[str] = set()
        self._links: set[str] = set()
        self._known: dict[str, ParsedURL | None] = {}
        self._picture: tuple[int, Mapping[str, str | None]] | None = None

    def read(self, tree: LexborHTMLParser) -> Page:
        base = tree.css_first("base[href]")
        if base is not None:
            self.base = self._resolve(base.attributes["href"]) or self.base
            self._known.clear()
        for node in tree.css(_LOOKED_AT):
            attributes = node.attributes
            read = _ELEMENTS.get(node.tag or "")
            if read is not None:
                read(self, node, attributes)
            if not _BACKGROUNDS.isdisjoint(attributes):
                self.read_backgrounds(attributes)
        return self.page

    def _resolve(self, reference: str | None) -> ParsedURL | None:
        """Where a reference leads; None: not to the web. Pages name few places, and those often."""
        if not reference:
            return None
        if reference not in self._known:
            self._known[reference] = self._find(_REMOVED.sub("", reference).strip())
        return self._known[reference]

    def _find(self, reference: str) -> ParsedURL | None:
        try:
            return resolve_location(self.base, reference) if reference else None
        except AddressError:
            return None

    def _image(self, reference: str | None, alt: str | None = None, title: str | None = None) -> None:
        self._add(Described(reference or "", title, alt))

    def _add(self, described: Described) -> None:
        target = self._resolve(described.url)
        if target is None or target.url in self._images or len(self._images) >= IMAGES_MAX:
            return
        self._images.add(target.url)
        texts = (described.caption, described.title, described.licence, described.creator)
        self.page.images.append(PageImage(target.url, *map(_text, texts)))

    def _link(self, reference: str | None) -> None:
        target = self._resolve(reference)
        if target is not None and target.url not in self._links and len(self._links) < LINKS_MAX:
            self._links.add(target.url)
            self.page.links.append(target.url)

    def read_title(self, node: LexborNode, _: Mapping[str, str | None]) -> None:
        """The first title in the head."""
        if self.page.title is None and node.parent is not None and node.parent.tag == "head":
            self.page.title = _text(node.text())

    def read_img(self, _: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """One image, however many sizes of it are named: the largest, else what a script would load, else src."""
        reference = _largest(attributes, ("srcset", *_LAZY_SETS)) or _first(
            attributes, (*_LAZY_SOURCES, "src")
        )
        self._image(reference, attributes.get("alt"), attributes.get("title"))

    def read_source(self, node: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """A source of a picture, which has the picture's own text. Those of audio and video have no srcset."""
        reference = _largest(attributes, ("srcset", *_LAZY_SETS))
        if reference is not None:
            texts = self._texts_of(node.parent)
            self._image(reference, texts.get("alt"), texts.get("title"))

    def _texts_of(self, picture: LexborNode | None) -> Mapping[str, str | None]:
        """What a picture's own image says, looked for once for all its sources."""
        if picture is None or picture.tag != "picture":
            return {}
        if self._picture is None or self._picture[0] != picture.mem_id:
            img = picture.css_first("img")
            self._picture = picture.mem_id, {} if img is None else img.attributes
        return self._picture[1]

    def read_anchor(self, node: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """A link: to an image, or to a page."""
        if "nofollow" in (attributes.get("rel") or "").lower().split():
            return
        target = self._resolve(attributes.get("href"))
        if target is None:
            return
        if names_image(target.url):
            inner = node.css_first("img[alt]")
            alt = inner.attributes["alt"] if inner is not None else attributes.get("alt")
            self._image(target.url, alt, attributes.get("title"))
        else:
            self._link(target.url)

    def read_frame(self, _: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """A page inside the page."""
        self._link(attributes.get("src"))

    def read_link(self, _: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """An image that stands for the page, or a page that belongs to it."""
        relations = set((attributes.get("rel") or "").lower().split())
        if "image_src" in relations:
            self._image(attributes.get("href"))
        elif relations & _LINKED and "nofollow" not in relations:
            self._link(attributes.get("href"))

    def read_meta(self, _: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """Images that stand for the page, and what its owner says to crawlers."""
        content = attributes.get("content") or ""
        name = (attributes.get("name") or "").strip().lower()
        kinds = {name, (attributes.get("property") or "").strip().lower()}
        if _META_IMAGES & kinds or (attributes.get("itemprop") or "").strip().lower() == "image":
            self._image(content)
        elif (attributes.get("http-equiv") or "").strip().lower() == "refresh":
            self._link(_refreshed(content))
        elif name in {"robots", self.token}:
            self.page.nofollow = self.page.nofollow or forbids_following([content], self.token)
            if refused_for([content], self.token) is not None:
                agent = "*" if name == "robots" else name
                self.page.refusals.append(Refusal(f'<meta name="{name}" content="{content}">', agent))
        elif name == RESERVATION and reserves(content.strip()):
            self.page.refusals.append(Refusal(f'<meta name="{name}" content="{content}">', "*", tdm=True))

    def read_script(self, node: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """Images described in JSON-LD."""
        if (attributes.get("type") or "").partition(";")[0].strip().lower() == "application/ld+json":
            for described in described_images(node.text()):
                self._add(described)

    def read_svg_image(self, _: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """An image inside a drawing."""
        self._image(_first(attributes, ("href", "xlink:href")))

    def read_video(self, _: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """What a film shows before it plays."""
        self._image(attributes.get("poster"))

    def read_input(self, _: LexborNode, attributes: Mapping[str, str | None]) -> None:
        """A button that is an image."""
        if (attributes.get("type") or "").lower() == "image":
            self._image(attributes.get("src"), attributes.get("alt"))

    def read_style(self, node: LexborNode, _: Mapping[str, str | None]) -> None:
        """Backgrounds in the page's own style sheet."""
        for reference in background_images(node.text()):
            self._image(reference)

    def read_backgrounds(self, attributes: Mapping[str, str | None]) -> None:
        """Backgrounds in attributes of any element."""
        for reference in background_images(attributes.get("style") or ""):
            self._image(reference, attributes.get("aria-label"), attributes.get("title"))
        for name in ("background", *_LAZY_BACKGROUNDS):
            value = (attributes.get(name) or "").strip()
            if value.lower().startswith("url("):
                value = next(background_images(f"background:{value}"), "")
            self._image(value, attributes.get("aria-label"), attributes.get("title"))


_ELEMENTS: Mapping[str, Callable[[_Reader, LexborNode, Mapping[str, str | None]], None]] = {
    "title": _Reader.read_title,
    "img": _Reader.read_img,
    "amp-img": _Reader.read_img,
    "source": _Reader.read_source,
    "a": _Reader.read_anchor,
    "area": _Reader.read_anchor,
    "iframe": _Reader.read_frame,
    "frame": _Reader.read_frame,
    "link": _Reader.read_link,
    "meta": _Reader.read_meta,
    "script": _Reader.read_script,
    "image": _Reader.read_svg_image,
    "video": _Reader.read_video,
    "input": _Reader.read_input,
    "style": _Reader.read_style,
}


def _largest(attributes: Mapping[str, str | None], names: tuple[str, ...]) -> str | None:
    return largest(_of_sets(attributes, names))


def _of_sets(
    attributes: Mapping[str, str | None], names: tuple[str, ...]
) -> Iterator[tuple[str, float, str]]:
    for name in names:
        yield from read_srcset(attributes.get(name) or "")


def _first(attributes: Mapping[str, str | None], names: tuple[str, ...]) -> str | None:
    """The first that is there and no data: URL."""
    values = (attributes.get(name) or "" for name in names)
    return next(
        (value for value in values if value.strip() and not value.lstrip().lower().startswith("data:")), None
    )


def _refreshed(content: str) -> str | None:
    """Where a page is replaced by another one: ``0; url='/there'``."""
    name, sign, target = content.replace(",", ";", 1).partition(";")[2].partition("=")
    return target.strip().strip("'\"") if sign and name.strip().lower() == "url" else None


def _text(value: str | None) -> str | None:
    """A text on one line, of bounded length, as PostgreSQL can hold it; None when there is nothing in it."""
    text = (value or "").replace("\0", "").encode("utf-8", "replace").decode()
    return " ".join(text.split())[:TEXT_CHARACTERS_MAX] or None
